//! Log lines of the thread of a test.
//!
//! There is one subscriber for all tests. With one for a thread, the first thread that reaches a log statement decides
//! whether it is enabled, for all threads, while there is only that one (`tracing-core` 0.1, `Dispatchers::rebuilder`).

use std::cell::RefCell;
use std::io::Write;
use std::sync::Once;

thread_local! {
    static LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Collects what this thread logs at level info and above, from when it was made on.
pub(crate) struct LogLines(());

impl LogLines {
    pub(crate) fn collect() -> Self {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            let subscriber = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(|| OfThread);
            tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
        });
        LINES.set(Some(Vec::new()));
        Self(())
    }

    /// The lines that hold `part`. All lines so far are dropped.
    pub(crate) fn take(&self, part: &str) -> Vec<String> {
        let bytes = LINES.replace(Some(Vec::new())).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.lines().filter(|line| line.contains(part));
        lines.map(str::to_owned).collect()
    }
}

impl Drop for LogLines {
    fn drop(&mut self) {
        LINES.set(None);
    }
}

/// Writes to the lines of the thread, where these are collected.
struct OfThread;

impl Write for OfThread {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
