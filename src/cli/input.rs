//! Lines of prompts: OpenAI batch lines, chat bodies, `{"prompt": …}` or plain text.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use serde_json::Value;

use super::marks::Expectation;
use crate::job::{Reason, Rejection, RequestLimits, Submission, Tenant};

/// A line of input.
#[derive(Debug)]
pub struct Line {
    /// Counted from 1, blank lines included.
    pub number: usize,
    /// The line's own name, or its number.
    pub custom_id: String,
    /// What answer is expected, in a marked file.
    pub expectation: Option<Expectation>,
    /// Whose job it is.
    pub tenant: Tenant,
    /// Made of name and content: the same line has the same key in every run.
    pub key: String,
    /// BLAKE3 of the line.
    pub digest: [u8; 32],
    /// The body for the queue, or why there is none.
    pub body: Result<Vec<u8>, Reason>,
}

/// Reads lines one by one, holding at most one of them.
pub struct Lines<R> {
    reader: R,
    limits: RequestLimits,
    number: usize,
    /// Digests of the names seen, to find duplicates.
    seen: HashSet<[u8; 16]>,
}

/// Opens a file of prompts; `-` is standard input.
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
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
    let (mut lines, mut is_blank) = (0, true);
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(Some(lines + u64::from(!is_blank)));
        }
        for byte in bytes {
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

    /// Reads to the end of the line, keeping one byte more than a body may have; `None` at the end
    /// of the input. The length is the whole line's.
    fn read_line(&mut self) -> io::Result<Option<(Vec<u8>, usize)>> {
        let keep_max = self.limits.body_bytes_max + 1;
        let mut kept = Vec::new();
        let limit = u64::try_from(keep_max).unwrap_or(u64::MAX);
        let mut length = self
            .reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut kept)?;
        if length == 0 {
            return Ok(None);
        }
        if kept.last() != Some(&b'\n') {
            length += skip_line(&mut self.reader)?;
        }
        Ok(Some((kept, length)))
    }

    fn interpret(&mut self, line: &[u8], length: usize) -> Line {
        let (expectation, parsed) = match take_expectation(line) {
            Ok((expectation, request)) => {
                let request = request.as_deref().unwrap_or(line);
                (expectation, self.parse(request, length))
            }
            Err(field) => (None, Err(not_a_string(field))),
        };
        let (own_id, tenant) = match &parsed {
            Ok((submission, _)) => (submission.custom_id.clone(), submission.tenant.clone()),
            Err(rejection) => (rejection.custom_id.clone(), rejection.tenant.clone()),
        };
        let custom_id = own_id.unwrap_or_else(|| self.number.to_string());
        let name = blake3::hash(custom_id.as_bytes());
        let mut short = [0; 16];
        short.copy_from_slice(&name.as_bytes()[..16]);
        let is_new = self.seen.insert(short);
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes()).update(line);
        if !is_new {
            // A repeated name is refused, and the refusal is a job of its own.
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

    fn parse(
        &self,
        line: &[u8],
        length: usize,
    ) -> Result<(Submission, Vec<u8>), Rejection> {
        if length > self.limits.body_bytes_max || line.first() == Some(&b'{') {
            // Too long a line is told by its first bytes: they fail the same check.
            return Submission::parse(line, &self.limits).map(|read| (read, line.to_vec()));
        }
        match std::str::from_utf8(line) {
            Ok(text) => {
                let body = serde_json::json!({"prompt": text}).to_string().into_bytes();
                // Written as JSON it may have become too long.
                let read = if body.len() > self.limits.body_bytes_max {
                    Submission::parse(&body, &self.limits)
                } else {
                    Submission::from_prompt(text, &self.limits)
                };
                read.map(|read| (read, body))
            }
            // Not a text: let the body's own check say so.
            Err(_) => Submission::parse(line, &self.limits).map(|read| (read, line.to_vec())),
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (kept, length) = match self.read_line() {
                Ok(Some(line)) => line,
                Ok(None) => return None,
                Err(fault) => return Some(Err(fault)),
            };
            self.number += 1;
            let mut line = kept.trim_ascii();
            if self.number == 1 {
                line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
            }
            if !line.is_empty() {
                return Some(Ok(self.interpret(line, length)));
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

/// Splits what is expected off a line. The request that is left is given only if it differs.
///
/// # Errors
/// The name of a field that is not a string.
fn take_expectation(line: &[u8]) -> Result<(Option<Expectation>, Option<Vec<u8>>), &'static str> {
    const FIELD: &[u8] = b"\"expect\"";
    let may_be_marked =
        line.first() == Some(&b'{') && line.windows(FIELD.len()).any(|window| window == FIELD);
    // A line that is no object is told so by the check of its body.
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

/// Skips the rest of a line; returns how many bytes it had.
fn skip_line(reader: &mut impl BufRead) -> io::Result<usize> {
    let mut skipped = 0;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(skipped);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(bytes.len(), |at| at + 1);
        reader.consume(length);
        skipped += length;
        if end.is_some() {
            return Ok(skipped);
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
    fn a_bad_line_spoils_no_other() {
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
    fn a_text_that_becomes_too_long_as_json_is_refused() {
        let text = format!("{}\n{}", "x".repeat(190), "\"".repeat(190));
        let too_large = Some("body_too_large".to_owned());
        assert_eq!(codes(text.as_bytes()), [too_large.clone(), too_large]);
        assert_eq!(codes("\"".repeat(90).as_bytes()), [None]);
    }

    #[test]
    fn equal_lines_that_are_marked_wrongly_have_keys_of_their_own() {
        let lines = read(b"{\"prompt\":\"a\",\"expect\":7}\n{\"prompt\":\"a\",\"expect\":7}");
        let codes = lines
            .iter()
            .map(|line| line.body.as_ref().map_err(|r| &r.code[..]));
        assert!(codes.eq([Err("invalid_type"), Err("invalid_type")]));
        assert_ne!(lines[0].key, lines[1].key);
    }

    #[test]
    fn keys_are_the_same_in_every_run_and_differ_by_line() {
        let text = b"same\nsame\nother";
        let (first, second) = (read(text), read(text));
        for (a, b) in first.iter().zip(&second) {
            assert_eq!(a.key, b.key);
        }
        let keys: HashSet<_> = first.iter().map(|line| &line.key).collect();
        assert_eq!(keys.len(), 3);
    }
}
