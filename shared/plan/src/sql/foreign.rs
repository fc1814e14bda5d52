//! What other systems say differently: such words are refused with the text to write instead, rather than with what the
//! parser had expected at that place.

use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::error::Fault;

/// A sequence of words that only another system has, and what to write instead.
const PHRASES: [(&[&str], &str); 9] = [
    (
        &["watermark", "for"],
        "WATERMARK FOR is Flink's; write the column and the delay behind the columns: \
         WITH (event_time = 'ts', watermark = '5 seconds')",
    ),
    (
        &["not", "enforced"],
        "NOT ENFORCED is Flink's; leave it out: PRIMARY KEY says which events are versions of one row",
    ),
    (&["window", "tumbling", "("], TUMBLING),
    (&["window", "hopping", "("], HOPPING),
    (&["window", "session", "("], SESSION),
    (
        &["emit", "changes"],
        "EMIT CHANGES is ksqlDB's; leave it out: every view can be followed, by GET /v1/views/{view}/stream",
    ),
    (
        &["emit", "final"],
        "EMIT FINAL is ksqlDB's; leave it out: GET /v1/views/{view}/stream?mode=append sends what is final",
    ),
    (
        &["descriptor", "("],
        "DESCRIPTOR is Flink's; name the table and its time directly: FROM TUMBLE(clicks, ts, INTERVAL '5 minutes')",
    ),
    (
        &["emit", "on", "window", "close"],
        "EMIT ON WINDOW CLOSE is RisingWave's; leave it out: GET /v1/views/{view}/stream?mode=append sends what is final",
    ),
];

const TUMBLING: &str = "WINDOW TUMBLING is ksqlDB's; write FROM TUMBLE(clicks, ts, INTERVAL '5 minutes'), \
    and GROUP BY window_start, window_end";
const HOPPING: &str = "WINDOW HOPPING is ksqlDB's; write FROM HOP(clicks, ts, INTERVAL '1 minute', INTERVAL '5 minutes'), \
    the slide before the size, and GROUP BY window_start, window_end";
const SESSION: &str = "WINDOW SESSION is ksqlDB's; write FROM SESSION(clicks, ts, INTERVAL '30 seconds') \
    with the key in GROUP BY window_start, window_end, key";

/// The first thing in a statement that another system says.
pub(super) fn fault(tokens: &[TokenWithSpan]) -> Option<Fault> {
    let tokens: Vec<&TokenWithSpan> =
        tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).collect();
    (0..tokens.len()).find_map(|i| {
        let message = if tokens[i].token == Token::Char('`') {
            let name = tokens.get(i + 1).map_or_else(|| "name".to_owned(), |name| name.token.to_string());
            Some(format!("backticks are MySQL's and Flink's; write \"{name}\", or {name} if it is in lower case"))
        } else {
            PHRASES.iter().find(|(words, _)| begins(&tokens[i..], words)).map(|(_, message)| (*message).to_owned())
        };
        message.map(|message| Fault::new(tokens[i].span.start, message))
    })
}

fn begins(tokens: &[&TokenWithSpan], words: &[&str]) -> bool {
    let is = |token: &Token, word: &str| match token {
        Token::Word(found) => found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word),
        Token::LParen => word == "(",
        _ => false,
    };
    tokens.len() >= words.len() && tokens.iter().zip(words).all(|(token, word)| is(&token.token, word))
}
