//! Connections: how many there may be, and how they begin and end.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::http::StatusCode;
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::Limits;
use crate::metric::Connections;
use crate::patience::Paced;
use crate::problem::{MEDIA_TYPE, Problem};
use crate::server::stopped;

/// The longest head of a request, and how much of bodies a connection holds beside that.
const BUFFER_BYTES: usize = 64 << 10;

/// Serves connections until it is told to stop and the last one has ended.
///
/// HTTP/1.1 alone: HTTP/2 has no use without TLS, and would let a client hold answers back without end by its windows.
pub(crate) async fn serve(
    mut listener: TcpListener,
    routes: Router,
    limits: &Limits,
    count: Arc<Connections>,
    mut stop: watch::Receiver<bool>,
) {
    let mut http = Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(BUFFER_BYTES);
    let seats = Seats::new(limits, Arc::clone(&count));
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        let seat = match seats.take(peer.ip()) {
            Ok(seat) => seat,
            Err(problem) => {
                if count.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(%peer, "a connection is refused, as too many are open; the metrics count the next ones");
                }
                refuse(stream, &problem);
                continue;
            }
        };
        // Updates are small and wanted at once.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "small packets of a connection are sent together");
        }
        let (http, routes, mut stop) = (http.clone(), routes.clone(), stop.clone());
        let io = TokioIo::new(Paced::new(stream, limits.transfer));
        connections.spawn(async move {
            let mut connection = pin!(http.serve_connection(io, TowerToHyperService::new(routes)));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopped(&mut stop) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "a connection broke off");
            }
            drop(seat);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Tells a client that there is no room for its connection.
fn refuse(stream: TcpStream, problem: &Problem) {
    let (status, body) = (problem.status(), serde_json::to_string(problem).unwrap_or_default());
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // A new connection has room for so little, so this doesn't wait.
    let sent = stream.into_std().and_then(|mut stream| stream.write_all(answer.as_bytes()));
    if let Err(error) = sent {
        tracing::debug!(%error, "a client isn't told that its connection is refused");
    }
}

/// Room for connections, in all and from one address.
struct Seats {
    most: usize,
    most_of_one: usize,
    taken: Taken,
    count: Arc<Connections>,
}

/// How many connections there are from each address.
type Taken = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// The room that a connection takes until this is dropped.
struct Seat {
    taken: Taken,
    count: Arc<Connections>,
    address: IpAddr,
}

impl Seats {
    fn new(limits: &Limits, count: Arc<Connections>) -> Self {
        let (most, most_of_one) = (limits.connections, limits.connections_per_address);
        Self { most, most_of_one, taken: Arc::default(), count }
    }

    fn take(&self, address: IpAddr) -> Result<Seat, Problem> {
        let address = whose(address);
        let mut taken = self.taken.lock();
        let full = |status, which: String| {
            let detail = format!("{which} are open, which is as many as may be; use those again, or try later");
            Err(Problem::new(status, "too-many-connections", detail))
        };
        if self.count.open.load(Ordering::Relaxed) >= self.most {
            return full(StatusCode::SERVICE_UNAVAILABLE, format!("{} connections", self.most));
        }
        let of_one = taken.entry(address).or_default();
        if *of_one >= self.most_of_one {
            return full(StatusCode::TOO_MANY_REQUESTS, format!("{} connections from {address}", self.most_of_one));
        }
        *of_one += 1;
        self.count.open.fetch_add(1, Ordering::Relaxed);
        Ok(Seat { taken: Arc::clone(&self.taken), count: Arc::clone(&self.count), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.count.open.fetch_sub(1, Ordering::Relaxed);
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// Whom an address counts for. A client has a whole network of IPv6, of 64 bits at least.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_its_share_and_all_together_no_more_than_there_is() {
        let limits = Limits { connections: 3, connections_per_address: 2, ..Limits::default() };
        let seats = Seats::new(&limits, Arc::default());
        let take = |address: &str| seats.take(address.parse().expect("an address")).map_err(|p| p.status().as_u16());
        let first = [take("10.0.0.1"), take("::ffff:10.0.0.1")];
        assert_eq!(take("10.0.0.1").err(), Some(429), "an IPv4 address is one in both forms");
        let other = take("2001:db8::1");
        assert_eq!(take("2001:db8::2").err(), Some(503));
        drop(first);
        let second = take("2001:db8::ffff:1");
        assert!(second.is_ok());
        assert_eq!(take("2001:db8::3").err(), Some(429), "a network of IPv6 is one client");
        assert!(take("2001:db8:0:1::1").is_ok());
        drop((other, second));
        assert!(seats.taken.lock().is_empty(), "who has no connection takes no memory");
        assert_eq!(seats.count.open.load(Ordering::Relaxed), 0);
    }
}
