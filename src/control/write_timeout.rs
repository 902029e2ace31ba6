//! A connection whose other end has to read what it is sent.

use std::pin::Pin;
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio_io_timeout::TimeoutWriter;

/// How long a caller may read nothing of what is sent to it.
pub(super) const UNREAD_LIMIT: Duration = Duration::from_secs(30);

/// Returns a connection on which writing fails once nothing could be written for [`UNREAD_LIMIT`]. No caller can hold
/// anything without end, then: hyper itself bounds only how long it may send.
pub(super) fn with_write_timeout<T: AsyncWrite>(inner: T) -> Pin<Box<TimeoutWriter<T>>> {
    let mut connection = TimeoutWriter::new(inner);
    connection.set_timeout(Some(UNREAD_LIMIT));
    Box::pin(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_given_up_and_who_reads_slowly_is_not() {
        let (ours, mut theirs) = duplex(8);
        let mut ours = with_write_timeout(ours);
        let reading = tokio::time::timeout(UNREAD_LIMIT * 20, async {
            for _ in 0..10 {
                tokio::time::sleep(UNREAD_LIMIT - Duration::from_secs(1)).await;
                theirs.read_exact(&mut [0; 8]).await.unwrap();
            }
        });
        let (written, read) = tokio::join!(ours.write_all(&[1; 80]), reading);
        written.unwrap();
        read.unwrap();
        let began = Instant::now();
        let error = ours.write_all(&[1; 80]).await.unwrap_err();
        assert_eq!(
            (error.kind(), began.elapsed().as_secs()),
            (ErrorKind::TimedOut, UNREAD_LIMIT.as_secs())
        );
    }
}
