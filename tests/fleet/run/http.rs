//! A client of a few lines: one request, one response, one connection.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use serde_json::Value;

use crate::support::poll::PATIENCE;

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts OpenAI's error shape with a status and a code.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{self:?}");
        assert!(
            error["message"].as_str().is_some_and(|m| m.len() > 5),
            "{self:?}"
        );
        assert!(
            error["type"].is_string() && error.get("param").is_some(),
            "{self:?}"
        );
    }
}

/// Sends a request; `headers` are lines that end in `\r\n`.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    // A server may refuse a large body before it has come in whole.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let outcome = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        outcome?;
        return Err(std::io::Error::other(format!("no response: {answer:?}")));
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok(Response {
        status: status.expect("a status line"),
        headers: head.to_lowercase(),
        body: body.to_owned(),
    })
}

pub fn get(address: SocketAddr, path: &str) -> Response {
    send(address, "GET", path, "", b"").unwrap()
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    send(address, "POST", path, "", body.to_string().as_bytes()).unwrap()
}
