//! Reads a project's SQL: `CREATE TABLE` and `CREATE MATERIALIZED VIEW` statements become a [`Catalog`].
//!
//! Statements are parsed by `sqlparser` in PostgreSQL's dialect, once, into one typed plan. What the platform can't do
//! is refused here with its place and a way out; nothing of a statement is ever ignored. Names are folded to lower
//! case unless quoted.

mod error;
mod expression;
mod foreign;
mod from;
mod function;
mod literal;
mod option;
mod output;
mod select;
mod statement;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlparser::ast::{CreateTable, CreateView, Ident, ObjectName, Spanned, Statement};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

pub use error::SqlError;

use crate::view::Catalog;
use error::Fault;
use statement::Planned;

/// A statement may have so many words and signs, which bounds how deep a tree made of it can be: `a + a + …` is as deep
/// as it is long. Constants and commas don't count, so that lists may be long.
const MAX_WORDS: usize = 2_000;

/// Plans the tables and views of all files, given with their names. Tables may be defined after the views that read
/// them and in other files. The errors are all that there are, in the order of the files.
pub fn plan(files: &[(String, String)]) -> Result<Catalog, Vec<SqlError>> {
    let mut errors = Vec::new();
    let mut sources = Vec::new();
    for (file, text) in files {
        // Editors put a byte order mark before the first character, which is none of the text.
        let (read, faults) = statements(text.strip_prefix('\u{feff}').unwrap_or(text));
        sources.extend(read.into_iter().map(|source| (file.as_str(), source)));
        errors.extend(faults.into_iter().map(|fault| fault.in_file(file)));
    }
    let mut catalog = Catalog::default();
    let mut broken = Broken { names: BTreeSet::new(), unread: !errors.is_empty() };
    for (file, source) in &sources {
        if let Definition::Table(create) = &source.definition {
            match statement::table(create, &source.tokens) {
                Ok(table) => {
                    if let Err(fault) = add_table(&mut catalog, create, table) {
                        errors.push(fault.in_file(file));
                    }
                }
                Err(faults) => {
                    broken.names.extend(simple_name(&create.name).ok());
                    errors.extend(faults.into_iter().map(|fault| fault.or_at(|| source.start()).in_file(file)));
                }
            }
        }
    }
    for (file, source) in &sources {
        if let Definition::View(create) = &source.definition {
            match statement::view(create, source, &catalog, &broken) {
                Ok(Some(Planned::View(view))) => {
                    catalog.views.insert(view.name.clone(), view);
                }
                Ok(Some(Planned::Output(output))) => {
                    catalog.outputs.insert(output.name.clone(), output);
                }
                Ok(None) => {}
                Err(faults) => {
                    errors.extend(faults.into_iter().map(|fault| fault.or_at(|| source.start()).in_file(file)));
                }
            }
        }
    }
    if errors.is_empty() {
        return Ok(catalog);
    }
    let position = |file: &str| files.iter().position(|(name, _)| name == file);
    errors.sort_by_key(|error| (position(&error.file), error.line, error.column));
    Err(errors)
}

fn add_table(catalog: &mut Catalog, create: &CreateTable, table: crate::schema::Table) -> Result<(), Fault> {
    if catalog.tables.contains_key(&table.name) {
        return Err(Fault::of(&create.name, format!("table `{}` is defined twice", table.name)));
    }
    if let Some(other) = catalog.table_of_topic(&table.topic) {
        return Err(Fault::of(
            &create.name,
            format!(
                "tables `{}` and `{}` are both over topic `{}`; a topic has one table",
                other.name, table.name, table.topic
            ),
        ));
    }
    catalog.tables.insert(table.name.clone(), Arc::new(table));
    Ok(())
}

/// Tables whose own definition is wrong: a view that reads them isn't wrong for that.
struct Broken {
    names: BTreeSet<String>,
    /// Whether there are statements that can't even be read, which may define any table.
    unread: bool,
}

impl Broken {
    fn may_define(&self, table: &str) -> bool {
        self.unread || self.names.contains(table)
    }
}

/// A statement as read.
struct Source {
    /// The text as written.
    text: String,
    /// Its tokens, to tell the place of what the syntax tree has no place for.
    tokens: Tokens,
    definition: Definition,
}

impl Source {
    fn start(&self) -> Location {
        self.tokens.start()
    }
}

enum Definition {
    Table(Box<CreateTable>),
    View(Box<CreateView>),
}

/// The tokens of one statement, white space included, its ends excluded.
struct Tokens(Vec<TokenWithSpan>);

impl Tokens {
    fn start(&self) -> Location {
        self.0.first().map_or(Location { line: 1, column: 1 }, |token| token.span.start)
    }

    /// Where the token stands that follows the one at a place.
    fn after(&self, at: Location) -> Location {
        let mut tokens = self.0.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
        tokens.find(|token| token.span.start > at).map_or(at, |token| token.span.start)
    }

    /// Where a keyword stands first.
    fn keyword(&self, keyword: Keyword) -> Location {
        let is_keyword = |token: &&TokenWithSpan| matches!(&token.token, Token::Word(word) if word.keyword == keyword);
        self.0.iter().find(is_keyword).map_or(self.start(), |token| token.span.start)
    }
}

/// Splits a text at its semicolons and parses each statement, so that an error in one doesn't hide those in others.
fn statements(text: &str) -> (Vec<Source>, Vec<Fault>) {
    let dialect = PostgreSqlDialect {};
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

fn parse(dialect: &PostgreSqlDialect, tokens: &Tokens, end: Location) -> Result<Definition, Fault> {
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
            "unsupported statement; a project holds CREATE TABLE and CREATE MATERIALIZED VIEW statements",
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

/// A name as SQL sees it: lower case unless quoted.
fn fold(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// A name without a schema before it.
fn simple_name(name: &ObjectName) -> Result<String, Fault> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(fold),
        _ => None,
    }
    .ok_or_else(|| Fault::new(name.span().start, format!("`{name}`: names have one part; there are no schemas")))
}
