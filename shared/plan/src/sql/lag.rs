//! The calls of `LAG` in a query, and the rows that they make.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use sqlparser::ast::{Ident, NamedWindowDefinition, NamedWindowExpr, WindowSpec};

use super::error::{Fault, list, suggestion};
use super::syntax::fold;
use crate::expr::Expr;
use crate::rows::{Field, Lag, Lagged, Rows};

/// Where it may stand.
pub(super) const AGGREGATES: &str = "LAG belongs to plain rows; write it in FROM (SELECT …, LAG(x) OVER (PARTITION BY k ORDER BY ts) AS previous FROM t) AS t";

/// Rows before a row that are asked for: of which window.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Over {
    pub keys: Vec<Expr>,
    pub time: String,
}

/// The calls of a query, and the windows that it names.
pub(super) struct Lags {
    windows: Vec<(String, WindowSpec)>,
    calls: RefCell<Vec<(Over, Call)>>,
    /// The windows that calls have named.
    named: RefCell<BTreeSet<String>>,
    /// Whether a call is being planned.
    pub is_inside: Cell<bool>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub value: Expr,
    pub back: usize,
    pub default: Option<Expr>,
}

impl Lags {
    /// No calls yet. `named` are the windows of `WINDOW w AS (…)`.
    pub fn new(named: &[NamedWindowDefinition]) -> Result<Self, Fault> {
        let window = |NamedWindowDefinition(name, window): &NamedWindowDefinition| match window {
            NamedWindowExpr::WindowSpec(spec) => Ok((fold(name), spec.clone())),
            NamedWindowExpr::NamedWindow(other) => {
                Err(Fault::new(other.span.start, format!("write WINDOW {name} AS (PARTITION BY k ORDER BY ts)")))
            }
        };
        let windows: Vec<(String, WindowSpec)> = named.iter().map(window).collect::<Result<_, _>>()?;
        for (i, NamedWindowDefinition(name, _)) in named.iter().enumerate() {
            if windows[..i].iter().any(|(other, _)| *other == fold(name)) {
                return Err(Fault::new(name.span.start, format!("window `{name}` is defined twice")));
            }
        }
        Ok(Self { windows, calls: RefCell::default(), named: RefCell::default(), is_inside: Cell::new(false) })
    }

    /// The window of a name.
    pub fn window(&self, name: &Ident) -> Result<&WindowSpec, Fault> {
        self.named.borrow_mut().insert(fold(name));
        let found = self.windows.iter().find(|(window, _)| *window == fold(name));
        found.map(|(_, spec)| spec).ok_or_else(|| {
            let names = || self.windows.iter().map(|(name, _)| name.as_str());
            let close = suggestion(&fold(name), names());
            Fault::new(name.span.start, format!("unknown window `{name}`; WINDOW names {}{close}", list(names())))
        })
    }

    /// A window that no call names.
    pub fn unused(&self) -> Option<String> {
        let named = self.named.borrow();
        self.windows.iter().find(|(window, _)| !named.contains(window)).map(|(window, _)| window.clone())
    }

    /// Whether there is any call.
    pub fn is_empty(&self) -> bool {
        self.calls.borrow().is_empty()
    }

    /// The column that a call becomes.
    pub fn take(&self, over: Over, call: Call) -> Expr {
        let mut calls = self.calls.borrow_mut();
        let (data_type, wanted) = (call.value.data_type(), (over, call));
        let number = calls.iter().position(|other| *other == wanted).unwrap_or(calls.len());
        if number == calls.len() {
            calls.push(wanted);
        }
        Expr::Column(name(number), data_type)
    }

    /// Rows with the columns of the calls.
    pub fn rows(self, rows: Rows) -> Rows {
        let calls = self.calls.into_inner();
        let mut windows: Vec<&Over> = Vec::new();
        for (over, _) in &calls {
            if !windows.contains(&over) {
                windows.push(over);
            }
        }
        windows.iter().fold(rows, |rows, over| {
            let mut fields = rows.fields();
            let own = fields.len();
            // What is computed is a column, so that the operator knows columns only.
            let mut column = |expr: &Expr| match expr {
                Expr::Column(name, _) => name.clone(),
                expr => match fields[own..].iter().find(|field| field.expr == *expr) {
                    Some(field) => field.name.clone(),
                    None => {
                        let name = format!("__of{}", fields.len());
                        fields.push(Field { name: name.clone(), expr: expr.clone() });
                        name
                    }
                },
            };
            let keys = over.keys.iter().map(&mut column).collect();
            let of_window = calls.iter().enumerate().filter(|(_, (other, _))| other == *over);
            let columns: Vec<Lagged> = of_window
                .map(|(number, (_, call))| Lagged {
                    name: name(number),
                    of: column(&call.value),
                    back: call.back,
                    default: call.default.clone(),
                })
                .collect();
            let rows = if fields.len() > own { Rows::Project { rows: Box::new(rows), fields } } else { rows };
            Rows::Lag(Box::new(Lag { rows, keys, time: over.time.clone(), columns }))
        })
    }
}

fn name(number: usize) -> String {
    format!("__lag{number}")
}
