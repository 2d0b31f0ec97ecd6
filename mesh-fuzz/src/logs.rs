//! Log lines as operators get them: whatever is in a field, an event is one line, and short.

use std::io;
use std::sync::Once;

/// Longest line that a single event may make, in bytes.
const MAX_LINE: usize = 8 * 1024;

struct Checked;

impl io::Write for Checked {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = line.strip_suffix(b"\n").expect("a line's end");
        let forged = text.iter().any(u8::is_ascii_control);
        assert!(!forged, "{}", String::from_utf8_lossy(line).escape_debug());
        assert!(line.len() <= MAX_LINE, "a line of {} bytes", line.len());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Checks every line from now on, made as the programs make theirs.
pub(crate) fn check() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let log = tracing_subscriber::fmt().with_ansi(false);
        log.with_writer(|| Checked).init();
    });
}
