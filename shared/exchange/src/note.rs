//! Notes: what commits of archives and of views' versions say of themselves, in JSON.
//!
//! | format | what |
//! |--------|------|
//! | 1      | has no `format`, and says what it says of partitions without their topic: `"coverage":{"0":[0,1200]}` |
//! | 2      | names the topic: `"format":2,"coverage":{"tweets":{"0":[0,1200]}}` |
//!
//! Archives and versions are the truth, so notes of all formats are read. One of a format that comes later is refused.

use anabranch_engine::edition::Reading;
use anabranch_log::position::ByTopic;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The format that is written.
pub(crate) const FORMAT: u64 = 2;

/// What a note says, of one topic.
pub trait Note: Serialize + DeserializeOwned {
    /// The fields that speak of the topic's partitions, or of its log.
    const BY_TOPIC: &'static [&'static str];

    /// As a note.
    fn to_note(&self, topic: &str) -> serde_json::Result<Value> {
        let mut note = serde_json::to_value(self)?;
        for field in Self::BY_TOPIC {
            if let Some(said) = note.get_mut(field) {
                *said = serde_json::to_value(ByTopic::of(topic, said.take()))?;
            }
        }
        note["format"] = FORMAT.into();
        Ok(note)
    }
}

/// How an archive's note says that its table is read.
impl Note for Reading {
    const BY_TOPIC: &'static [&'static str] = &["editions"];
}

/// A note that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted<T> {
    /// The topic that it is of; none in what was written before notes named it.
    pub topic: Option<String>,
    /// What it says.
    pub said: T,
}

impl<T> Noted<T> {
    /// Whether it is of a topic, as far as it says so.
    pub fn is_of(&self, topic: &str) -> bool {
        self.topic.as_ref().is_none_or(|named| named == topic)
    }
}

/// That a note can't be read.
pub(crate) fn other_format(format: &Value) -> String {
    format!("it is of format {format}, and this build reads formats 1 and {FORMAT}")
}

impl<'de, T: Note> Deserialize<'de> for Noted<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut note = Value::deserialize(deserializer)?;
        let mut topic = None;
        match note.get("format").map(Value::as_u64) {
            None => {}
            Some(Some(FORMAT)) => {
                for field in T::BY_TOPIC {
                    let Some(said) = note.get_mut(field) else { continue };
                    let said_of = ByTopic::<Value>::deserialize(said.take()).map_err(Error::custom)?;
                    let topic = topic.get_or_insert_with(|| said_of.topics().next().unwrap_or_default().to_owned());
                    *said = said_of.only(topic).map_err(|other| Error::custom(format!("`{field}`: {other}")))?;
                }
            }
            Some(_) => {
                return Err(Error::custom(other_format(&note["format"])));
            }
        }
        Ok(Self { topic, said: serde_json::from_value(note).map_err(Error::custom)? })
    }
}

#[cfg(test)]
mod tests {
    use anabranch_engine::edition::Editions;

    use super::*;

    fn read(note: &Value) -> Result<Noted<Reading>, String> {
        serde_json::from_value(note.clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_note_names_its_topic_and_is_read_with_or_without() {
        let reading = Reading { editions: Editions::default(), rebuilds: 3 };
        let note = reading.to_note("tweets").expect("a note");
        assert_eq!(note, serde_json::json!({"format": 2, "editions": {"tweets": []}, "rebuilds": 3}));
        let noted = read(&note).expect("read");
        assert_eq!((noted.topic.as_deref(), &noted.said), (Some("tweets"), &reading));
        assert!(noted.is_of("tweets") && !noted.is_of("clicks"));
        let before = read(&serde_json::json!({"editions": [], "rebuilds": 3})).expect("read");
        assert_eq!((&before.topic, &before.said), (&None, &reading));
        assert!(before.is_of("tweets"));
    }

    #[test]
    fn a_note_of_a_later_format_or_of_two_topics_is_refused() {
        let later = read(&serde_json::json!({"format": 3, "editions": {}})).expect_err("later");
        assert_eq!(later, "it is of format 3, and this build reads formats 1 and 2");
        assert!(read(&serde_json::json!({"format": "2"})).is_err());
        let two = read(&serde_json::json!({"format": 2, "editions": {"a": [], "b": []}})).expect_err("two topics");
        assert!(two.contains(r#"`editions`: it is of the topics ["a", "b"]"#), "{two}");
        assert!(read(&serde_json::json!({"format": 2, "editions": []})).is_err(), "as before topics were named");
    }
}
