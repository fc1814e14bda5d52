//! What is left of a request's body once its answer is made: a client that sends on without listening loses an answer whose
//! connection is closed under it. So the rest is read and dropped, up to a limit, while the answer goes out.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use futures::{Stream, StreamExt};
use tokio::runtime::Handle;

use crate::patience;

/// So much is read and dropped at most.
const MAX_BYTES: usize = 64 << 20;

/// For so long at most.
const MAX_TIME: Duration = Duration::from_secs(30);

/// Has a body come at a pace, and its rest read, whoever answers, and why. Of one that is too slow nothing more is read.
pub(crate) async fn drain(State(pace): State<Duration>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    // A client that waits to be told to go on sends nothing if it is answered instead.
    let is_sent = !request.headers().contains_key(header::EXPECT);
    let leftover = |body| Leftover { body: Some(patience::paced(body, pace).into_data_stream()), is_sent };
    let request = request.map(|body| Body::from_stream(leftover(body)));
    next.run(request).await
}

/// A body whose rest is drained when it is dropped.
struct Leftover {
    /// None once it has ended.
    body: Option<BodyDataStream>,
    /// Whether the client sends it.
    is_sent: bool,
}

impl Stream for Leftover {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.is_sent = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = body.poll_next_unpin(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let (true, Some(mut rest), Ok(runtime)) = (self.is_sent, self.body.take(), Handle::try_current()) else {
            return;
        };
        runtime.spawn(tokio::time::timeout(MAX_TIME, async move {
            let mut read = 0;
            while read < MAX_BYTES
                && let Some(Ok(piece)) = rest.next().await
            {
                read += piece.len();
            }
        }));
    }
}
