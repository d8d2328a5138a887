//! Where the tests' servers and tools are: `scripts/test` says so in variables, else the standard
//! local ones are used.

use std::{
    env,
    net::TcpListener,
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
};

pub fn amqp_url() -> String {
    env::var("PROMPTYARD_TEST_AMQP_URL")
        .unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
}

pub fn database_url() -> String {
    env::var("PROMPTYARD_TEST_DATABASE_URL")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned())
}

/// The interpreter that has the packages of scripts/requirements.txt.
pub fn python() -> String {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    env::var("PROMPTYARD_TEST_PYTHON").unwrap_or_else(|_| local.display().to_string())
}

/// The folder of all-MiniLM-L6-v2, from the package that scripts/weights.txt names.
pub fn embedder_folder() -> String {
    env::var("PROMPTYARD_TEST_EMBEDDER").expect(
        "the tests need all-MiniLM-L6-v2: run ./scripts/test, or set PROMPTYARD_TEST_EMBEDDER to its directory",
    )
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A port for a server that restarts: below those that the system gives to outgoing connections, so
/// that none of them takes it while the server is down.
pub fn lasting_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let at = std::process::id() * 16 + u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + u16::try_from(at % 12_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
