//! How settings are written: sizes and durations with units, counts and addresses checked.

use std::collections::BTreeMap;
use std::time::Duration;

use anabranch_plan::unit::{format_bytes, format_duration, parse_bytes, parse_duration};
use anabranch_store::storage::check_option;
use serde::{Deserialize, Deserializer, Serializer, de};

/// A duration of more than no time.
pub mod duration {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = text(deserializer, "a duration such as \"10 s\"")?;
        match parse_duration(&text).map_err(de::Error::custom)? {
            0 => Err(de::Error::custom(format!("`{text}`: the duration must be longer than no time"))),
            micros => Ok(Duration::from_micros(micros.unsigned_abs())),
        }
    }

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(i64::try_from(value.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// A duration, or none.
pub mod optional_duration {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(deserializer).map(Some)
    }

    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => duration::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// A size.
pub mod bytes {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        parse_bytes(&text(deserializer, "a size such as \"64 MiB\"")?).map_err(de::Error::custom)
    }

    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_bytes(*value))
    }
}

/// A size, or none.
pub mod optional_bytes {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        bytes::deserialize(deserializer).map(Some)
    }

    pub fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => bytes::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// How many of something, one at least.
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match usize::deserialize(deserializer)? {
        0 => Err(de::Error::custom("must be 1 or more")),
        count => Ok(count),
    }
}

/// A host or an IP address, and a port.
pub fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = text(deserializer, "an address such as \"127.0.0.1:8080\"")?;
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text),
        _ => Err(de::Error::custom(format!("`{text}` isn't an address and a port, such as `127.0.0.1:8080`"))),
    }
}

/// Names of hosts: a list, or a text with commas.
pub fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected names of hosts such as [\"analytics.example.com\"]")]
    enum Names {
        List(Vec<String>),
        Text(String),
    }
    let names = match Names::deserialize(deserializer)? {
        Names::List(names) => names,
        Names::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
    };
    let is_name = |name: &str| {
        let (host, port) = match name.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (name, None),
        };
        let is_of_one = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
        !host.is_empty() && host.chars().all(is_of_one) && port.is_none_or(|port| port.parse::<u16>().is_ok())
    };
    match names.iter().find(|name| !is_name(name)) {
        Some(name) => Err(de::Error::custom(format!(
            "`{name}` isn't the name of a host, such as `analytics.example.com`, or one with a port, such as `proxy.local:8443`"
        ))),
        None => Ok(names),
    }
}

/// Properties of S3's client, by names that it knows.
pub fn storage_options<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let options = BTreeMap::deserialize(deserializer)?;
    options.keys().try_for_each(|name: &String| check_option(name)).map_err(de::Error::custom)?;
    Ok(options)
}

/// A text; a number is told what it lacks.
fn text<'de, D: Deserializer<'de>>(deserializer: D, expected: &'static str) -> Result<String, D::Error> {
    struct Text(&'static str);

    impl de::Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }

    deserializer.deserialize_str(Text(expected))
}
