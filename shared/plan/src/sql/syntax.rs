//! Statements as they are read: their text, tokens and syntax trees, and the names in them.

use std::collections::BTreeSet;

use sqlparser::ast::{
    CreateTable, CreateView, Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, Query, SetExpr, Spanned, Statement,
    TableFactor,
};
use sqlparser::derive_dialect;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use super::error::Fault;
use super::foreign;

/// A statement may have so many words and signs, which bounds how deep a tree made of it can be: `a + a + …` is as deep
/// as it is long. Constants and commas don't count, so that lists may be long.
const MAX_WORDS: usize = 2_000;

/// A statement as read.
pub(super) struct Source {
    /// The text as written.
    pub text: String,
    /// Its tokens, to tell the place of what the syntax tree has no place for.
    pub tokens: Tokens,
    pub definition: Definition,
}

impl Source {
    pub fn start(&self) -> Location {
        self.tokens.start()
    }
}

pub(super) enum Definition {
    Table(Box<CreateTable>),
    View(Box<CreateView>),
}

/// The tokens of one statement, white space included, its ends excluded.
pub(super) struct Tokens(Vec<TokenWithSpan>);

impl Tokens {
    pub fn start(&self) -> Location {
        self.0.first().map_or(Location { line: 1, column: 1 }, |token| token.span.start)
    }

    /// Where the token stands that follows the one at a place.
    pub fn after(&self, at: Location) -> Location {
        let mut tokens = self.0.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
        tokens.find(|token| token.span.start > at).map_or(at, |token| token.span.start)
    }

    /// Where a keyword stands first.
    pub fn keyword(&self, keyword: Keyword) -> Location {
        let is_keyword = |token: &&TokenWithSpan| matches!(&token.token, Token::Word(word) if word.keyword == keyword);
        self.0.iter().find(is_keyword).map_or(self.start(), |token| token.span.start)
    }
}

// PostgreSQL's, with `FOR SYSTEM_TIME AS OF`.
derive_dialect!(
    OurDialect,
    PostgreSqlDialect,
    preserve_type_id = true,
    overrides = { supports_table_versioning = true }
);

/// Splits a text at its semicolons and parses each statement, so that an error in one doesn't hide those in others.
pub(super) fn statements(text: &str) -> (Vec<Source>, Vec<Fault>) {
    let dialect = OurDialect::new();
    let tokens = match Tokenizer::new(&dialect, text).tokenize_with_location() {
        Ok(tokens) => tokens,
        Err(error) => return (Vec::new(), vec![Fault::new(error.location, sentence(&error.message))]),
    };
    let (mut sources, mut faults) = (Vec::new(), Vec::new());
    for tokens in tokens.split(|token| matches!(token.token, Token::SemiColon | Token::EOF)) {
        let is_blank = |token: &TokenWithSpan| matches!(token.token, Token::Whitespace(_));
        let (Some(first), Some(last)) =
            (tokens.iter().position(|token| !is_blank(token)), tokens.iter().rposition(|token| !is_blank(token)))
        else {
            continue;
        };
        let tokens = Tokens(tokens[first..=last].to_vec());
        let end = tokens.0[last - first].span.end;
        let text = &text[byte_offset(text, tokens.start())..byte_offset(text, end)];
        match parse(&dialect, &tokens, end) {
            Ok(definition) => sources.push(Source { text: text.to_owned(), tokens, definition }),
            Err(fault) => faults.push(fault.or_at(|| tokens.start())),
        }
    }
    (sources, faults)
}

fn parse(dialect: &OurDialect, tokens: &Tokens, end: Location) -> Result<Definition, Fault> {
    if tokens.0.iter().filter(|token| is_word(&token.token)).count() > MAX_WORDS {
        return Err(Fault::new(tokens.start(), format!("the statement has more than {MAX_WORDS} words and signs")));
    }
    if let Some(fault) = foreign::fault(&tokens.0) {
        return Err(fault);
    }
    let parsed = Parser::new(dialect).with_tokens_with_locations(tokens.0.clone()).parse_statements();
    let mut parsed = parsed.map_err(|error| syntax_fault(error, tokens, end))?;
    match (parsed.pop(), parsed.is_empty()) {
        (Some(Statement::CreateTable(create)), true) => Ok(Definition::Table(Box::new(create))),
        (Some(Statement::CreateView(create)), true) => Ok(Definition::View(Box::new(create))),
        _ => Err(Fault::new(
            tokens.start(),
            "unsupported statement; a project holds CREATE TABLE, CREATE VIEW and CREATE MATERIALIZED VIEW statements",
        )),
    }
}

fn is_word(token: &Token) -> bool {
    !matches!(token, Token::Whitespace(_) | Token::Comma | Token::Number(..) | Token::SingleQuotedString(_))
}

/// The parser tells the place in its message's text; at the end of the statement it tells none.
fn syntax_fault(error: ParserError, tokens: &Tokens, end: Location) -> Fault {
    let message = match error {
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => message,
        ParserError::RecursionLimitExceeded => return Fault::new(tokens.start(), "the statement is nested too deeply"),
    };
    let placed = message.rsplit_once(" at Line: ").and_then(|(message, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        Some((message, Location { line: line.parse().ok()?, column: column.parse().ok()? }))
    });
    match placed {
        Some((message, at)) => Fault::new(at, sentence(message)),
        None => Fault::new(end, sentence(&message)),
    }
}

/// `Expected: x, found: y` in the manner of our own messages.
fn sentence(message: &str) -> String {
    let message =
        message.replace("Expected: ", "expected ").replace("found: EOF", "found the end").replace("found: ", "found ");
    let mut characters = message.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => "syntax error".to_owned(),
    }
}

/// Where in the text a place is; places count characters.
fn byte_offset(text: &str, at: Location) -> usize {
    let line_start: usize = text.split_inclusive('\n').take((at.line as usize).saturating_sub(1)).map(str::len).sum();
    let line = &text[line_start..];
    line_start + line.char_indices().nth((at.column as usize).saturating_sub(1)).map_or(line.len(), |(i, _)| i)
}

/// The names of tables and views that a query reads, but for those of queries that it defines itself.
pub(super) fn relations(query: &Query) -> BTreeSet<String> {
    let mut relations = Relations::default();
    relations.query(query);
    relations.found
}

#[derive(Default)]
struct Relations {
    /// The queries of each WITH around.
    defined: Vec<String>,
    found: BTreeSet<String>,
}

impl Relations {
    fn query(&mut self, query: &Query) {
        let outer = self.defined.len();
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.query(&cte.query);
            self.defined.push(fold(&cte.alias.name));
        }
        self.body(&query.body);
        self.defined.truncate(outer);
    }

    fn body(&mut self, body: &SetExpr) {
        match body {
            SetExpr::Query(query) => self.query(query),
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left);
                self.body(right);
            }
            SetExpr::Select(select) => select.from.iter().for_each(|from| {
                self.factor(&from.relation);
                from.joins.iter().for_each(|join| self.factor(&join.relation));
            }),
            _ => {}
        }
    }

    fn factor(&mut self, factor: &TableFactor) {
        match factor {
            TableFactor::Derived { subquery, .. } => self.query(subquery),
            TableFactor::NestedJoin { table_with_joins, .. } => {
                self.factor(&table_with_joins.relation);
                table_with_joins.joins.iter().for_each(|join| self.factor(&join.relation));
            }
            TableFactor::Table { name, args: None, .. } => self.name(simple_name(name).ok()),
            TableFactor::Table { args: Some(given), .. } => match given.args.first() {
                Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(ident)))) => {
                    self.name(Some(fold(ident)))
                }
                Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Subquery(query)))) => self.query(query),
                _ => {}
            },
            _ => {}
        }
    }

    fn name(&mut self, name: Option<String>) {
        self.found.extend(name.filter(|name| !self.defined.contains(name)));
    }
}

/// A name as SQL sees it: lower case unless quoted.
pub(super) fn fold(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// A name without a schema before it.
pub(super) fn simple_name(name: &ObjectName) -> Result<String, Fault> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(fold),
        _ => None,
    }
    .ok_or_else(|| Fault::new(name.span().start, format!("`{name}`: names have one part; there are no schemas")))
}
