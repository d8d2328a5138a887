//! A TCP proxy that can cut its connections, refuse new ones, or fall silent.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Open,
    /// Keeps connections but passes on nothing that the client says.
    Silent,
    /// Ends connections and takes no new ones.
    Shut,
}

pub struct Proxy {
    pub port: u16,
    mode: Arc<watch::Sender<Mode>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(watch::channel(Mode::Open).0);
        let shared = mode.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *shared.borrow() == Mode::Shut {
                    continue;
                }
                let (server, mode) = (server.clone(), shared.subscribe());
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(server).await {
                        pass_on(client, server, mode).await;
                    }
                });
            }
        });
        Self {
            port,
            mode,
            accepting,
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Cuts every connection that there is; new ones are welcome.
    pub fn cut(&self) {
        self.set(Mode::Shut);
        self.set(Mode::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Mode::Shut);
    }
}

/// Both directions, until either side ends or the proxy cuts.
async fn pass_on(client: TcpStream, server: TcpStream, mut mode: watch::Receiver<Mode>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut silent = mode.clone();
    let forth = async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            if silent.wait_for(|mode| *mode != Mode::Silent).await.is_err()
                || to_server.write_all(&buffer[..read]).await.is_err()
            {
                return;
            }
        }
    };
    let back = tokio::io::copy(&mut from_server, &mut to_client);
    // A cut may be over before anybody has looked, so every change is looked at.
    let cut = async move {
        mode.mark_unchanged();
        let mut was_silent = *mode.borrow() == Mode::Silent;
        while mode.changed().await.is_ok() {
            let now = *mode.borrow_and_update();
            if now == Mode::Shut || (now == Mode::Open && !was_silent) {
                return;
            }
            was_silent = now == Mode::Silent;
        }
    };
    tokio::select! {
        () = forth => {}
        _ = back => {}
        () = cut => {}
    }
}
