//! What a request must be like before anything looks at what it asks for: it means this server, doesn't come from another site's
//! page, and can be read in one way only.

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, Method, Request, StatusCode, Version, header};

use crate::problem::Problem;

/// Headers that have one value. Of two, a proxy might go by one and this server by the other.
static SINGLE: [HeaderName; 6] = [
    header::HOST,
    header::ORIGIN,
    header::CONTENT_TYPE,
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("last-event-id"),
];

/// A host's name, and the port where there is one.
type Name = (String, Option<u16>);

/// The names by which this server may be called, besides those of the loopback. Without them a page could give its own name this
/// machine's address, and would then be of the same origin (DNS rebinding).
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    listen: Option<Name>,
    /// Those of the settings.
    named: Vec<Name>,
}

impl Hosts {
    /// The host of the address that is listened on, and more names, which have a port where only that one is meant.
    pub fn new(listen: &str, named: &[String]) -> Self {
        Self { listen: split(listen), named: named.iter().filter_map(|name| split(name)).collect() }
    }

    /// Whether this server may be called so.
    fn include(&self, authority: &str) -> bool {
        let Some((host, port)) = split(authority) else { return false };
        let is_named = self.named.iter().any(|(name, at)| *name == host && (at.is_none() || *at == port));
        let listen = self.listen.as_ref().map(|(listen, _)| listen);
        // An address is nobody's name: no page can have it that isn't served from there.
        let is_address = ip(&host).is_some_and(|called| {
            let listens_on_all = listen.and_then(|listen| ip(listen)).is_some_and(|ip| ip.is_unspecified());
            called.to_canonical().is_loopback() || listens_on_all
        });
        is_address || is_named || listen == Some(&host) || host == "localhost" || host.ends_with(".localhost")
    }

    /// Whether an origin is that of this server's pages: it is called so, or is reached so through a proxy, by the settings.
    fn serve(&self, origin: &str, called: Option<&str>) -> bool {
        let (usual, authority) = match origin.split_once("://") {
            Some(("http", authority)) => (80, authority),
            Some(("https", authority)) => (443, authority),
            _ => return false,
        };
        let with_port = |(host, port): Name| (host, port.unwrap_or(usual));
        let origin = split(authority).map(with_port);
        let own = called.and_then(split).into_iter().chain(self.named.iter().cloned());
        origin.is_some_and(|origin| own.map(with_port).any(|name| name == origin))
    }
}

/// The host in lower case and the port of `host:port`; IPv6 addresses keep their brackets.
fn split(authority: &str) -> Option<Name> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    (!host.is_empty()).then(|| (host.to_ascii_lowercase(), port))
}

fn ip(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    }
}

/// Refuses what isn't for this server to answer.
pub(crate) fn check<B>(request: &Request<B>, hosts: &Hosts) -> Result<(), Problem> {
    let headers = request.headers();
    if let Some(name) = SINGLE.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        return Err(Problem::bad_request("repeated-header", format!("the header `{name}` is given twice")));
    }
    let called = called(request)?;
    if let Some(foreign) = called.iter().find(|name| !hosts.include(name)) {
        let detail = format!(
            "this server doesn't answer to the name `{foreign}`; if it is one of its own, add it to `hosts` under [server]"
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, "foreign-host", detail));
    }
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !is_read && is_foreign(headers, hosts, called.first().copied()) {
        let detail = "a page of another origin may not change anything here; a proxy's name has to be among `hosts` under [server]";
        return Err(Problem::new(StatusCode::FORBIDDEN, "foreign-origin", detail));
    }
    // The others' queries are for pages.
    if request.uri().path().starts_with("/v1/") {
        check_query(request.uri().query().unwrap_or_default())
    } else {
        Ok(())
    }
}

/// The names by which a request calls this server. HTTP/1.0 has none; such clients are no browsers.
fn called<B>(request: &Request<B>) -> Result<Vec<&str>, Problem> {
    let target = request.uri().authority().map(|authority| authority.as_str());
    let host = match request.headers().get(header::HOST).map(|host| host.to_str()) {
        None if target.is_none() && request.version() > Version::HTTP_10 => {
            return Err(Problem::bad_request("no-host", "a request names the server that it means, in `Host`"));
        }
        None => None,
        Some(Ok(host)) => Some(host),
        Some(Err(_)) => return Err(Problem::bad_request("no-host", "`Host` is no name")),
    };
    Ok(target.into_iter().chain(host).collect())
}

/// Whether a request comes from a page of another origin. Browsers say so in one of two headers, older ones only in `Origin`. Other
/// clients send neither, and no page can make them.
fn is_foreign(headers: &HeaderMap, hosts: &Hosts, called: Option<&str>) -> bool {
    let site = headers.get("sec-fetch-site");
    let origin = headers.get(header::ORIGIN);
    site.is_some_and(|site| site != "same-origin" && site != "none")
        || origin.is_some_and(|origin| !origin.to_str().is_ok_and(|origin| hosts.serve(origin, called)))
}

/// Refuses a query that says something twice, or what is no text: by some reading or other it would be answered wrongly.
fn check_query(query: &str) -> Result<(), Problem> {
    let mut names = BTreeSet::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let (Some(name), Some(_)) = (unescaped(name), unescaped(value)) else {
            let detail = format!(
                "`{part}` can't be read: `%` and two hexadecimal digits are a byte of UTF-8, `%25` is `%` itself"
            );
            return Err(Problem::bad_request("bad-query", detail));
        };
        if let Some(name) = names.replace(name) {
            return Err(Problem::bad_request("bad-parameter", format!("`{name}` is given twice")));
        }
    }
    Ok(())
}

/// A part of a query as a text, if it is one.
fn unescaped(part: &str) -> Option<String> {
    let mut text = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        text.push(match byte {
            b'%' => u8::try_from(digit()? << 4 | digit()?).ok()?,
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_answers_to_its_own_names_only() {
        let named = ["analytics.example.com".to_owned(), "Proxy.example:8443".to_owned()];
        let (local, public) = (Hosts::new("127.0.0.1:8080", &named), Hosts::new("0.0.0.0:8080", &[]));
        let (elsewhere, v6) = (Hosts::new("10.1.2.3:8080", &[]), Hosts::new("[::]:8080", &[]));
        for (hosts, name, expected) in [
            (&local, "localhost:8080", true),
            (&local, "LocalHost", true),
            (&local, "app.localhost:1", true),
            (&local, "127.0.0.1:8080", true),
            (&local, "127.8.8.8", true),
            (&local, "[::1]:8080", true),
            (&local, "[::ffff:127.0.0.1]", true),
            (&local, "analytics.example.com", true),
            (&local, "analytics.example.com.:9000", true),
            (&local, "proxy.example:8443", true),
            (&local, "proxy.example:8444", false),
            (&local, "proxy.example", false),
            (&local, "x.analytics.example.com", false),
            (&local, "analytics.example.com.evil.example", false),
            (&local, "localhost.evil.example", false),
            (&local, "127.0.0.1.evil.example", false),
            (&local, "evil.example@localhost", false),
            (&local, "localhost:80:80", false),
            (&local, "localhost:x", false),
            (&local, "notlocalhost", false),
            (&local, "10.1.2.3", false),
            (&local, "0.0.0.0:8080", false),
            (&local, "::1", false),
            (&local, "", false),
            (&public, "10.1.2.3:8080", true),
            (&public, "[fe80::1]:8080", true),
            (&public, "anabranch:8080", false),
            (&elsewhere, "10.1.2.3:8080", true),
            (&elsewhere, "10.1.2.4:8080", false),
            (&v6, "10.1.2.3", true),
            (&Hosts::default(), "localhost", true),
            (&Hosts::default(), "10.1.2.3", false),
        ] {
            assert_eq!(hosts.include(name), expected, "{name}");
        }
    }

    #[test]
    fn pages_are_of_the_origin_that_the_request_names_or_of_one_in_the_settings() {
        let hosts =
            Hosts::new("127.0.0.1:8080", &["analytics.example.com".to_owned(), "proxy.example:8443".to_owned()]);
        for (origin, called, expected) in [
            ("http://localhost:8080", Some("localhost:8080"), true),
            ("http://localhost", Some("localhost:80"), true),
            ("https://a.localhost", Some("A.localhost:443"), true),
            ("https://a.localhost", Some("a.localhost"), true),
            ("http://localhost:3000", Some("localhost:8080"), false),
            ("http://127.0.0.1:8080", Some("localhost:8080"), false),
            ("http://localhost", Some("localhost:8080"), false),
            ("http://app.localhost:8080", Some("localhost:8080"), false),
            ("https://analytics.example.com", Some("127.0.0.1:8080"), true),
            ("https://analytics.example.com:444", Some("127.0.0.1:8080"), false),
            ("https://proxy.example:8443", Some("127.0.0.1:8080"), true),
            ("https://proxy.example", Some("127.0.0.1:8080"), false),
            ("https://evil.example", None, false),
            ("null", Some("localhost:8080"), false),
            ("file://", Some("localhost:8080"), false),
            ("chrome-extension://localhost", Some("localhost"), false),
            ("", None, false),
        ] {
            assert_eq!(hosts.serve(origin, called), expected, "{origin} to {called:?}");
        }
    }

    #[test]
    fn a_query_is_read_in_one_way_only() {
        for query in ["", "&&", "a", "a=", "a=1&b=1", "key.x=%C3%A4&key.y=a+b", "a==&b=%25", "a=1&A=1"] {
            assert!(check_query(query).is_ok(), "{query}");
        }
        for query in [
            "a=1&a=1",
            "a&a=",
            "a=1&%61=2",
            "a=%FF",
            "%ff=a",
            "a=%C3",
            "a=%ed%a0%80",
            "a=%",
            "a=%2",
            "a=%zz",
            "a=100%&b",
        ] {
            assert!(check_query(query).is_err(), "{query}");
        }
    }
}
