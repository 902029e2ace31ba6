//! The wire format of Server-Sent Events (WHATWG HTML, section 9.2, "Server-sent events"), with a limit
//! on what one event may take. Streams of providers and of the daemon are read by it.

use bytes::{Buf as _, Bytes};

/// Most bytes that the room for a line keeps when the line is done.
const KEPT_BYTES: usize = 4 * 1024;

/// Longest ID of an event that is kept, in bytes: it comes back in a header.
const MAX_ID_BYTES: usize = 256;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The `event` field; empty where there is none.
    pub(crate) event: String,
    /// The `data` fields, joined by line breaks.
    pub(crate) data: String,
}

/// An event or a line is larger than the parser allows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {0} bytes")]
pub(crate) struct EventTooLarge(usize);

/// Reads events out of bytes, however these are cut into pieces.
#[derive(Debug)]
pub(crate) struct Parser {
    /// Most bytes that an event may take in memory, its fields together; also of one line.
    max_bytes: usize,
    /// The line that is not complete yet.
    line: Vec<u8>,
    event: Vec<u8>,
    /// The data lines so far, each with a line break behind it.
    data: Vec<u8>,
    last_id: Option<String>,
    /// The last byte was a carriage return, so that a line feed would belong to it.
    after_return: bool,
    /// The first line is complete: no byte order mark is to come.
    begun: bool,
}

impl Parser {
    /// A parser of a stream from its beginning. An event, its fields together, may take `max_bytes` in memory, and so
    /// may a line.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            line: Vec::new(),
            event: Vec::new(),
            data: Vec::new(),
            last_id: None,
            after_return: false,
            begun: false,
        }
    }

    /// Takes bytes off the front of `input` until an event is complete or nothing is left. What is left
    /// when an event is returned is to be given again.
    ///
    /// # Errors
    /// [`EventTooLarge`]; the parser is of no use after that.
    pub(crate) fn next(&mut self, input: &mut Bytes) -> Result<Option<Frame>, EventTooLarge> {
        if self.after_return && !input.is_empty() {
            self.after_return = false;
            if input[0] == b'\n' {
                input.advance(1);
            }
        }
        while let Some(end) = input.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let rest = input.split_to(end);
            self.keep(&rest)?;
            let ended_by = input.get_u8();
            if ended_by == b'\r' {
                match input.first() {
                    Some(b'\n') => input.advance(1),
                    Some(_) => {}
                    None => self.after_return = true,
                }
            }
            let line = std::mem::take(&mut self.line);
            let frame = self.line(&line)?;
            self.line = line;
            self.line.clear();
            self.line.shrink_to(KEPT_BYTES);
            if frame.is_some() {
                return Ok(frame);
            }
        }
        let rest = input.split_to(input.len());
        self.keep(&rest)?;
        Ok(None)
    }

    /// The ID of the last event that had one, for `Last-Event-ID`.
    pub(crate) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), EventTooLarge> {
        self.check(self.line.len() + bytes.len())?;
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn check(&self, more: usize) -> Result<(), EventTooLarge> {
        if self.data.len() + self.event.len() + more > self.max_bytes {
            Err(EventTooLarge(self.max_bytes))
        } else {
            Ok(())
        }
    }

    /// Takes in a line without its end.
    fn line(&mut self, line: &[u8]) -> Result<Option<Frame>, EventTooLarge> {
        // A byte order mark before the first line is no part of it.
        let marked = !std::mem::replace(&mut self.begun, true);
        let line = line
            .strip_prefix(b"\xef\xbb\xbf")
            .filter(|_| marked)
            .unwrap_or(line);
        if line.is_empty() {
            return Ok(self.dispatch());
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (
                &line[..colon],
                line[colon + 1..]
                    .strip_prefix(b" ")
                    .unwrap_or(&line[colon + 1..]),
            ),
            None => (line, [].as_slice()),
        };
        match field {
            b"data" => {
                self.check(value.len() + 1)?;
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            b"event" => {
                self.event.clear();
                self.check(value.len())?;
                self.event.extend_from_slice(value);
            }
            b"id" if value.len() <= MAX_ID_BYTES && !value.contains(&0) => {
                self.last_id = Some(String::from_utf8_lossy(value).into_owned());
            }
            // `retry` among them: how soon to connect again is decided here. A line that begins with a
            // colon is a comment.
            _ => {}
        }
        Ok(None)
    }

    fn dispatch(&mut self) -> Option<Frame> {
        let event = std::mem::take(&mut self.event);
        let mut data = std::mem::take(&mut self.data);
        data.pop()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(Frame {
            event: text(&event),
            data: text(&data),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX_EVENT_BYTES: usize = 256 * 1024;

    /// All events of a text that comes in these pieces, with the last ID.
    fn parse(pieces: &[&[u8]]) -> Result<(Vec<Frame>, Option<String>), EventTooLarge> {
        let mut parser = Parser::new(MAX_EVENT_BYTES);
        let mut frames = Vec::new();
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            while !input.is_empty() {
                frames.extend(parser.next(&mut input)?);
            }
        }
        Ok((frames, parser.last_id().map(ToOwned::to_owned)))
    }

    fn frame(event: &str, data: &str) -> Frame {
        Frame {
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn the_examples_of_the_standard() {
        // WHATWG HTML, 9.2.6, "Interpreting an event stream": its examples, with what they mean.
        let (frames, _) = parse(&[b"data: YHOO\ndata: +2\ndata: 10\n\n"]).unwrap();
        assert_eq!(frames, [frame("", "YHOO\n+2\n10")]);
        let (frames, id) =
            parse(&[b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"])
                .unwrap();
        assert_eq!(
            frames,
            [frame("", "first event"), frame("", "second event")]
        );
        assert_eq!(id.as_deref(), Some(""));
        let (frames, _) = parse(&[b"data\n\ndata\ndata\n\ndata:"]).unwrap();
        assert_eq!(frames, [frame("", ""), frame("", "\n")]);
        let (frames, _) = parse(&[b"data:test\n\ndata: test\n\n"]).unwrap();
        assert_eq!(frames, [frame("", "test"), frame("", "test")]);
    }

    #[test]
    fn every_line_end_counts_once_and_a_mark_is_skipped() {
        for text in [
            "\u{feff}event: a\ndata: b\n\n",
            "event:a\rdata:b\r\r",
            "event:a\r\ndata: b\r\n\r\n",
        ] {
            assert_eq!(
                parse(&[text.as_bytes()]).unwrap().0,
                [frame("a", "b")],
                "{text:?}"
            );
        }
        assert_eq!(
            parse(&[b"data: a\r", b"\n\r", b"\ndata: b\n\n"]).unwrap().0,
            [frame("", "a"), frame("", "b")]
        );
    }

    #[test]
    fn an_event_has_a_limit_whatever_it_is_made_of() {
        let long = vec![b'x'; MAX_EVENT_BYTES + 1];
        assert_eq!(parse(&[&long]), Err(EventTooLarge(MAX_EVENT_BYTES)));
        assert_eq!(
            parse(&[b"data:", &long]),
            Err(EventTooLarge(MAX_EVENT_BYTES))
        );
        let line = [b"data:".as_slice(), &[b'x'; 1000], b"\n"].concat();
        assert_eq!(
            parse(&[line.repeat(300).as_slice()]),
            Err(EventTooLarge(MAX_EVENT_BYTES))
        );
        // One that just fits, again and again.
        let fits = [b"data:".as_slice(), &long[..MAX_EVENT_BYTES - 8], b"\n\n"].concat();
        assert_eq!(parse(&[&fits, &fits, &fits]).unwrap().0.len(), 3);
        // Comments take no room that stays.
        assert_eq!(
            parse(&[[b": ".as_slice(), &[b'x'; 100_000], b"\n"]
                .concat()
                .repeat(10)
                .as_slice()])
            .unwrap()
            .0,
            []
        );
    }

    #[test]
    fn ids_that_no_header_may_carry_are_not_kept() {
        assert_eq!(
            parse(&[b"id: 7\ndata: x\n\nid: a\0b\ndata: y\n\n"])
                .unwrap()
                .1
                .as_deref(),
            Some("7")
        );
        let long = [b"id: 7\nid: ".as_slice(), &[b'x'; 300], b"\n"].concat();
        assert_eq!(parse(&[&long]).unwrap().1.as_deref(), Some("7"));
        assert_eq!(
            parse(&[b"data: \xff\xfe\n\n"]).unwrap().0,
            [frame("", "\u{fffd}\u{fffd}")]
        );
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            bytes in proptest::collection::vec(
                prop_oneof![3 => Just(b'\n'), 2 => Just(b'\r'), 2 => Just(b':'), 1 => Just(b' '), 3 => Just(b'd'), 1 => any::<u8>()],
                0..200,
            ),
            fields in proptest::collection::vec(0_usize..4, 0..8),
            cuts in proptest::collection::vec(0_usize..400, 0..20),
        ) {
            let mut text = bytes;
            for field in fields {
                text.extend_from_slice([b"data: x\n".as_slice(), b"event: y\r\n", b"id: 1\r", b"\n\n"][field]);
            }
            let whole = parse(&[&text]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (text.len() + 1)).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&pieces), whole);
        }
    }
}
