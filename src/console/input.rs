//! Files of prompts: OpenAI batch lines, chat bodies, `{"prompt": …}` or plain text.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use serde_json::Value;

use crate::job::{Reason, Rejection, RequestLimits, Submission, Tenant};

use super::marks::Expectation;

/// A line of input.
#[derive(Debug)]
pub struct Line {
    /// Line number from 1, counting blank lines.
    pub number: usize,
    /// The line's `custom_id`, or its number.
    pub custom_id: String,
    /// The expected answer, in a marked file.
    pub expectation: Option<Expectation>,
    /// The tenant of the job.
    pub tenant: Tenant,
    /// Idempotency key, derived from `custom_id` and content, so that it is the same in every run.
    pub key: String,
    /// BLAKE3 of the line.
    pub digest: [u8; 32],
    /// The body for the queue, or why the line is refused.
    pub body: Result<Vec<u8>, Reason>,
}

/// Reads lines one by one, with at most one in memory.
pub struct Lines<R> {
    reader: R,
    limits: RequestLimits,
    number: usize,
    /// Digests of the `custom_id`s seen, to find duplicates.
    seen: HashSet<[u8; 16]>,
}

/// Opens a file of prompts, or standard input for `-`.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(path: &Path, limits: RequestLimits) -> io::Result<Lines<Box<dyn BufRead + Send>>> {
    let reader: Box<dyn BufRead + Send> = if path == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "it is a directory",
            ));
        }
        Box::new(BufReader::with_capacity(1 << 16, file))
    };
    Ok(Lines::new(reader, limits))
}

/// Counts the lines that are not blank, for a progress bar; `None` for standard input.
///
/// # Errors
/// When the file cannot be read.
pub fn count(path: &Path) -> io::Result<Option<u64>> {
    if path == Path::new("-") || !path.is_file() {
        return Ok(None);
    }
    count_lines(BufReader::with_capacity(1 << 16, File::open(path)?)).map(Some)
}

/// Some editors write this at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Counts the lines that are not blank.
///
/// # Errors
/// When the input cannot be read.
pub fn count_lines(mut reader: impl BufRead) -> io::Result<u64> {
    let (mut lines, mut is_blank) = (0, true);
    // The rest of a possible byte order mark; an incomplete one is text.
    let mut mark = BYTE_ORDER_MARK;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            let is_part = !mark.is_empty() && mark.len() < BYTE_ORDER_MARK.len();
            return Ok(lines + u64::from(!is_blank || is_part));
        }
        for byte in bytes {
            if let Some(rest) = mark.strip_prefix(&[*byte]) {
                mark = rest;
                continue;
            }
            if !mark.is_empty() {
                is_blank &= mark.len() == BYTE_ORDER_MARK.len();
                mark = &[];
            }
            match byte {
                b'\n' => {
                    lines += u64::from(!is_blank);
                    is_blank = true;
                }
                byte => is_blank &= byte.is_ascii_whitespace(),
            }
        }
        let length = bytes.len();
        reader.consume(length);
    }
}

impl<R: BufRead> Lines<R> {
    /// Lines of a reader.
    pub fn new(reader: R, limits: RequestLimits) -> Self {
        Self {
            reader,
            limits,
            number: 0,
            seen: HashSet::new(),
        }
    }

    /// Reads a line and trims it; `None` at the end of the input. A line longer than the limit of a
    /// body is cut a few bytes after that limit. Leading space of the first line counts towards the
    /// limit, since a byte order mark may precede it.
    fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let is_first = self.number == 0;
        let mut keep_max = self.limits.body_bytes_max.saturating_add(1);
        if is_first {
            keep_max = keep_max.saturating_add(BYTE_ORDER_MARK.len());
        } else {
            skip_space(&mut self.reader)?;
        }
        let mut line = Vec::new();
        let limit = u64::try_from(keep_max).unwrap_or(u64::MAX);
        let length = self
            .reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(None);
        }
        let is_cut = line.last() != Some(&b'\n') && !skip_line(&mut self.reader)?;
        if is_first && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        // A cut line keeps its length, so that it is refused as too long.
        if !is_cut {
            line.truncate(line.trim_ascii_end().len());
            line.drain(..line.len() - line.trim_ascii_start().len());
        }
        Ok(Some(line))
    }

    fn interpret(&mut self, line: &[u8]) -> Line {
        let (expectation, parsed) = match take_expectation(line) {
            Ok((expectation, request)) => {
                (expectation, self.parse(request.as_deref().unwrap_or(line)))
            }
            Err(field) => (None, Err(not_a_string(field))),
        };
        let (own_id, tenant) = match &parsed {
            Ok((submission, _)) => (submission.custom_id.clone(), submission.tenant.clone()),
            Err(rejection) => (rejection.custom_id.clone(), rejection.tenant.clone()),
        };
        let custom_id = own_id.unwrap_or_else(|| self.number.to_string());
        let id_hash = blake3::hash(custom_id.as_bytes());
        let mut short = [0; 16];
        short.copy_from_slice(&id_hash.as_bytes()[..16]);
        let is_new = self.seen.insert(short);
        let mut hasher = blake3::Hasher::new();
        hasher.update(id_hash.as_bytes()).update(line);
        if !is_new {
            // A repeated id is refused, and the refusal is a separate job.
            hasher.update(&self.number.to_le_bytes());
        }
        let body = match parsed {
            Ok(_) if !is_new => Err(Reason::new(
                "duplicate_custom_id",
                format!(
                    "line {}: an earlier line has the same custom_id",
                    self.number
                ),
            )),
            Ok((_, body)) => Ok(body),
            Err(rejection) => Err(rejection.reason),
        };
        Line {
            number: self.number,
            custom_id,
            expectation,
            tenant: tenant.unwrap_or_default(),
            key: format!("line:{}", &hasher.finalize().to_hex().as_str()[..32]),
            digest: *blake3::hash(line).as_bytes(),
            body,
        }
    }

    fn parse(&self, line: &[u8]) -> Result<(Submission, Vec<u8>), Rejection> {
        if let Ok(text) = str::from_utf8(line)
            && !text.starts_with('{')
            && text.len() <= self.limits.body_bytes_max
        {
            let body = serde_json::json!({"prompt": text}).to_string().into_bytes();
            // Escaped as JSON, the text may exceed the limit.
            if body.len() <= self.limits.body_bytes_max {
                return Submission::from_prompt(text, &self.limits).map(|read| (read, body));
            }
            return Submission::parse(&body, &self.limits).map(|read| (read, body));
        }
        // Not text, or too long: parsing it as a body yields the right error.
        Submission::parse(line, &self.limits).map(|read| (read, line.to_vec()))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.read_line() {
                Ok(Some(line)) => line,
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            };
            self.number += 1;
            if !line.is_empty() {
                return Some(Ok(self.interpret(&line)));
            }
        }
    }
}

fn not_a_string(field: &str) -> Rejection {
    Rejection {
        reason: Reason::new("invalid_type", format!("{field}: expected a string")),
        custom_id: None,
        tenant: None,
    }
}

/// Splits the expectation off a line. Returns the remaining request only if it differs.
///
/// # Errors
/// The name of a field that is not a string.
fn take_expectation(line: &[u8]) -> Result<(Option<Expectation>, Option<Vec<u8>>), &'static str> {
    const FIELD: &[u8] = b"\"expect\"";
    let may_be_marked =
        line.first() == Some(&b'{') && line.windows(FIELD.len()).any(|window| window == FIELD);
    // Parsing the body reports a line that is not an object.
    if !may_be_marked {
        return Ok((None, None));
    }
    let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else {
        return Ok((None, None));
    };
    let expectation = Expectation::take(&mut object)?;
    let request = expectation
        .is_some()
        .then(|| Value::Object(object).to_string().into_bytes());
    Ok((expectation, request))
}

/// Skips the space at the start of a line.
fn skip_space(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = reader.fill_buf()?;
        let is_space = |byte: &u8| byte.is_ascii_whitespace() && *byte != b'\n';
        let length = bytes.iter().take_while(|byte| is_space(byte)).count();
        let is_over = length < bytes.len() || bytes.is_empty();
        reader.consume(length);
        if is_over {
            return Ok(());
        }
    }
}

/// Skips the rest of a line; returns whether it was blank.
fn skip_line(reader: &mut impl BufRead) -> io::Result<bool> {
    let mut is_blank = true;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(is_blank);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(bytes.len(), |at| at + 1);
        is_blank &= bytes[..length].iter().all(u8::is_ascii_whitespace);
        reader.consume(length);
        if end.is_some() {
            return Ok(is_blank);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Vec<Line> {
        let limits = RequestLimits {
            body_bytes_max: 200,
            ..RequestLimits::default()
        };
        Lines::new(text, limits)
            .map(|line| line.expect("in memory"))
            .collect()
    }

    #[test]
    fn every_shape_of_line_becomes_a_body() {
        let lines = read(
            "{\"custom_id\":\"a\",\"body\":{\"prompt\":\"x\"}}\n\n{\"prompt\":\"y\"}\nplain text\n"
                .as_bytes(),
        );
        let ids: Vec<_> = lines.iter().map(|line| line.custom_id.as_str()).collect();
        assert_eq!(ids, ["a", "3", "4"]);
        assert_eq!(
            lines[2].body.as_deref(),
            Ok(br#"{"prompt":"plain text"}"#.as_slice())
        );
    }

    #[test]
    fn an_invalid_line_does_not_affect_others() {
        let mut text = b"{\"prompt\":\nfine\n\xff\xfe\n".to_vec();
        text.extend(vec![b'x'; 1000]);
        text.extend(b"\n{\"custom_id\":\"2\",\"body\":{\"prompt\":\"z\"}}\nlast");
        let lines = read(&text);
        let codes: Vec<_> = lines
            .iter()
            .map(|line| line.body.as_ref().err().map(|reason| reason.code.as_str()))
            .collect();
        assert_eq!(
            codes,
            [
                Some("invalid_json"),
                None,
                Some("invalid_utf8"),
                Some("body_too_large"),
                Some("duplicate_custom_id"),
                None
            ]
        );
    }

    fn codes(text: &[u8]) -> Vec<Option<String>> {
        let lines = read(text).into_iter();
        lines
            .map(|line| line.body.err().map(|reason| reason.code))
            .collect()
    }

    #[test]
    fn a_byte_order_mark_and_the_space_after_it_are_skipped() {
        let text = b"\xef\xbb\xbf {\"prompt\":\"a\"}\n";
        let lines = read(text);
        assert_eq!(
            lines[0].body.as_deref(),
            Ok(br#"{"prompt":"a"}"#.as_slice())
        );
        assert_eq!(count_lines(&text[..]).expect("in memory"), 1);
        for (text, count) in [
            (&b"\xef\xbb\xbf \na"[..], 1),
            (b"\xef\xbb", 1),
            (b"\xef\n", 1),
            (b"\n\xef\xbb\xbf", 1),
            (b"", 0),
        ] {
            assert_eq!(read(text).len(), count, "{text:?}");
            let counted = count_lines(text).expect("in memory");
            assert_eq!(counted, count as u64, "{text:?}");
        }
    }

    #[test]
    fn surrounding_space_does_not_count_towards_the_limit() {
        let space = " ".repeat(300);
        let text = format!("a\n{space}{{\"prompt\":\"b\"}}{space}\n{space}\nc{space}d\n");
        let too_large = Some("body_too_large".to_owned());
        assert_eq!(codes(text.as_bytes()), [None, None, too_large]);
    }

    #[test]
    fn a_text_that_becomes_too_long_as_json_is_refused() {
        let text = format!("{}\n{}", "x".repeat(190), "\"".repeat(190));
        let too_large = Some("body_too_large".to_owned());
        assert_eq!(codes(text.as_bytes()), [too_large.clone(), too_large]);
        assert_eq!(codes("\"".repeat(90).as_bytes()), [None]);
    }

    #[test]
    fn equal_lines_with_invalid_marks_have_different_keys() {
        let lines = read(b"{\"prompt\":\"a\",\"expect\":7}\n{\"prompt\":\"a\",\"expect\":7}");
        let codes = lines
            .iter()
            .map(|line| line.body.as_ref().map_err(|r| &r.code[..]));
        assert!(codes.eq([Err("invalid_type"), Err("invalid_type")]));
        assert_ne!(lines[0].key, lines[1].key);
    }

    #[test]
    fn keys_are_stable_across_runs_and_differ_by_line() {
        let text = b"same\nsame\nother";
        let (first, second) = (read(text), read(text));
        for (a, b) in first.iter().zip(&second) {
            assert_eq!(a.key, b.key);
        }
        let keys: HashSet<_> = first.iter().map(|line| &line.key).collect();
        assert_eq!(keys.len(), 3);
    }
}
