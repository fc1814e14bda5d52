//! How long a client may keep the server waiting. A client that sends or takes a little now and then gets no more time for it:
//! what moves has to keep a pace.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use futures::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

/// The slowest pace of a body, in bytes a second.
const SLOWEST: u64 = 10_000;

/// When so many bytes have to be through.
fn deadline(start: Instant, slack: Duration, bytes: u64) -> Instant {
    start + slack + Duration::from_millis(bytes * 1_000 / SLOWEST)
}

/// Whether something failed because the client took too long.
pub(crate) fn was_too_slow(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut))
}

/// The same body, which fails once it is `slack` behind the slowest pace.
pub(crate) fn paced(body: Body, slack: Duration) -> Body {
    let start = Instant::now();
    let chunks = stream::try_unfold((body.into_data_stream(), 0), move |(mut chunks, bytes)| async move {
        match timeout_at(deadline(start, slack, bytes), chunks.next()).await {
            Err(_) => Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut))),
            Ok(None) => Ok(None),
            Ok(Some(chunk)) => chunk.map(|chunk| {
                let bytes = bytes + chunk.len() as u64;
                Some((chunk, (chunks, bytes)))
            }),
        }
    });
    Body::from_stream(chunks)
}

/// A connection that fails once its client is `slack` behind the slowest pace in taking what it is sent.
pub(crate) struct Paced<S> {
    stream: S,
    slack: Duration,
    /// Since when there is more for the client than it has taken, and how much it has taken since.
    behind: Option<(Instant, u64)>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub fn new(stream: S, slack: Duration) -> Self {
        Self { stream, slack, behind: None, alarm: None }
    }

    /// Takes note of what the client took; where it takes nothing, waits for the end of its time as well.
    fn watch(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let (since, taken) = match (&written, &mut self.behind) {
            (Poll::Ready(Ok(bytes)), Some((_, taken))) => {
                *taken += *bytes as u64;
                return written;
            }
            (Poll::Ready(_), _) => return written,
            (Poll::Pending, behind) => *behind.get_or_insert((Instant::now(), 0)),
        };
        let end = deadline(since, self.slack, taken);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if alarm.deadline() != end {
            alarm.as_mut().reset(end);
        }
        ready!(alarm.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Everything there was for the client has been written by now.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.behind = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_a_client_takes_below_the_pace_gives_it_no_more_time() {
        let (server, mut client) = duplex(50);
        let mut server = Paced::new(server, Duration::from_millis(200));
        let dripping = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                client.read_exact(&mut [0; 50]).await.expect("there is more");
            }
        };
        let sent = tokio::select! {
            sent = server.write_all(&[0; 100_000]) => sent,
            () = dripping => unreachable!("it takes as long as it may"),
        };
        assert_eq!(sent.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn a_client_that_has_taken_everything_owes_nothing() {
        let (server, mut client) = duplex(50);
        let mut server = Paced::new(server, Duration::from_millis(200));
        for _ in 0..20 {
            let both = tokio::try_join!(
                async {
                    server.write_all(&[0; 100]).await?;
                    server.flush().await
                },
                async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    client.read_exact(&mut [0; 100]).await
                },
            );
            assert_eq!(both.map_err(|error| error.kind()), Ok(((), 100)));
        }
    }
}
