//! Parses server-sent events incrementally (WHATWG HTML, section 9.2.6).
//!
//! Bytes in, split anywhere; events out. Never fails: invalid input is skipped, as the standard
//! demands.

use std::mem;

/// One event: its data lines joined, and its name if it has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: String,
}

/// Parses events from bytes.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    /// The unfinished line.
    line: Vec<u8>,
    name: String,
    /// `None` until the event has a data line, which may be empty.
    data: Option<String>,
    /// The last byte was a carriage return; a line feed after it ends no further line.
    after_return: bool,
    /// The first line, which may start with a byte order mark, has ended.
    has_begun: bool,
}

impl EventReader {
    /// Adds bytes and returns the events that they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_return = mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// The last event if only its terminator is missing. The standard drops it, but some servers omit
    /// the last blank line; a truncated event would not parse as JSON.
    pub(super) fn finish(mut self) -> Option<Event> {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.dispatch()
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = mem::take(&mut self.line);
        let mut line = line.as_slice();
        if !mem::replace(&mut self.has_begun, true) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &[][..]),
        };
        let value = String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value));
        match field {
            b"data" => self.append(&value),
            b"event" => self.name = value.into_owned(),
            // Older llama.cpp sends errors in a field of this name.
            b"error" => {
                self.append(&value);
                self.name = "error".to_owned();
            }
            // A comment (no name before the colon), or an irrelevant field.
            _ => {}
        }
        None
    }

    fn append(&mut self, value: &str) {
        match &mut self.data {
            Some(data) => {
                data.push('\n');
                data.push_str(value);
            }
            None => self.data = Some(value.to_owned()),
        }
    }

    fn dispatch(&mut self) -> Option<Event> {
        let name = mem::take(&mut self.name);
        self.data.take().map(|data| Event { name, data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<Event> {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for piece in pieces {
            events.extend(reader.push(piece));
        }
        events.extend(reader.finish());
        events
    }

    fn event(name: &str, data: &str) -> Event {
        Event {
            name: name.to_owned(),
            data: data.to_owned(),
        }
    }

    /// The standard applied to a whole text at once: normalise line ends, split into blocks at blank
    /// lines, parse the fields of each block.
    fn reference(text: &str) -> Vec<Event> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut events = Vec::new();
        let mut block: Vec<&str> = Vec::new();
        for line in text.split('\n').chain([""]) {
            if !line.is_empty() {
                block.push(line);
                continue;
            }
            let fields: Vec<(&str, &str)> = mem::take(&mut block)
                .into_iter()
                .map(|line| line.split_once(':').unwrap_or((line, "")))
                .map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value)))
                .collect();
            let data: Vec<&str> = fields
                .iter()
                .filter(|(field, _)| ["data", "error"].contains(field))
                .map(|(_, value)| *value)
                .collect();
            let name = fields.iter().rev().find_map(|(field, value)| match *field {
                "event" => Some(*value),
                "error" => Some("error"),
                _ => None,
            });
            if !data.is_empty() {
                events.push(event(name.unwrap_or_default(), &data.join("\n")));
            }
        }
        events
    }

    #[test]
    fn parses_events_as_servers_write_them() {
        let text = "\u{feff}: ping\r\n\r\nevent: delta\r\ndata: {\"a\":\rdata:1}\n\nid: 7\nretry: 9\n\ndata\n\nerror: {}\n\ndata: [DONE]";
        let expected = [
            event("delta", "{\"a\":\n1}"),
            event("", ""),
            event("error", "{}"),
            event("", "[DONE]"),
        ];
        assert_eq!(read(&[text.as_bytes()]), expected);
        assert_eq!(read(&[b"data: \xff\n\n"]), [event("", "\u{fffd}")]);
        assert_eq!(read(&[]), []);
    }

    /// Texts rich in line ends, colons, field names and multi-byte characters.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec!["\n", "\r", "\r\n", "\n\n", ":", " ", "data:", "data: ", "data", "event: ", "error:", "id:", "\u{feff}"])
                .prop_map(str::to_owned),
            1 => "[a-zé日]{1,3}",
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_events_of_the_standard(text in texts(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
            let bytes = text.as_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            prop_assert_eq!(read(&pieces), reference(&text));
        }

        #[test]
        fn single_bytes_give_the_same_events(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(read(&single), read(&[&bytes]));
        }
    }
}
