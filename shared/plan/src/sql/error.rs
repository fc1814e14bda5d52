//! What is wrong in a project's SQL, and where.

use sqlparser::ast::Spanned;
use sqlparser::tokenizer::Location;

/// An error in a view's or a table's definition, at the token that caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct SqlError {
    /// The file as it was named to the planner.
    pub file: String,
    /// The line, counted from 1.
    pub line: u64,
    /// The column in characters, counted from 1.
    pub column: u64,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// An error that doesn't know its file yet, nor its place if no token of it has one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub at: Location,
    pub message: String,
}

impl Fault {
    /// A fault at a known place.
    pub fn new(at: Location, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }

    /// A fault of a part of the syntax tree.
    pub fn of(part: &impl Spanned, message: impl Into<String>) -> Self {
        Self::new(part.span().start, message)
    }

    /// Some parts of the tree have no place: gives such a fault that of what encloses it.
    pub fn or_at(mut self, enclosing: impl FnOnce() -> Location) -> Self {
        if self.at.line == 0 {
            self.at = enclosing();
        }
        self
    }

    /// The error for the user.
    pub fn in_file(self, file: &str) -> SqlError {
        SqlError { file: file.to_owned(), line: self.at.line, column: self.at.column, message: self.message }
    }
}

/// `` `a`, `b`, `c` ``
pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// `; did you mean …?` if a known name is close to the unknown one in spelling, else nothing. Nobody mistypes the first letter
/// for another: `power` isn't meant to be `lower`.
pub(super) fn suggestion<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let allowed = (unknown.chars().count() / 3).min(3);
    known
        .into_iter()
        .map(|name| (distance(&unknown.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= allowed && begin_alike(&unknown.to_lowercase(), &name.to_lowercase()))
        .min()
        .map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}

/// Whether two names begin with the same letter, but for one that is missing, too many, or swapped with the next.
fn begin_alike(a: &str, b: &str) -> bool {
    let (mut one, mut other) = (a.chars(), b.chars());
    let (first, second) = (one.next(), one.next());
    let (other_first, other_second) = (other.next(), other.next());
    first == other_first || first == other_second || second == other_first
}

/// How many characters have to be inserted, deleted, replaced or swapped with their neighbour to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { best.min(rows[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    rows[a.len()][b.len()]
}
