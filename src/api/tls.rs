//! A listener that accepts TLS; handshakes run concurrently, so that a slow one delays no other.
//!
//! `axum-server` would replace this file, but it always builds HTTP/2 (h2, which nothing else here
//! needs, and protocol detection on every connection) and does not limit concurrent handshakes.

use std::{fs, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::serve::Listener;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Time limit of a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Most concurrent handshakes; further connections wait in the operating system's queue.
const HANDSHAKES_MAX: usize = 256;
/// Wait after a failed accept, such as for want of file descriptors.
const ACCEPT_WAIT: Duration = Duration::from_millis(200);

/// Yields connections whose handshake is done.
#[derive(Debug)]
pub(super) struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

/// Reads a certificate chain and its private key, both PEM.
///
/// # Errors
/// A message that names the file.
pub(super) fn read(certificate: &str, key: &str) -> Result<Arc<ServerConfig>, String> {
    let in_file = |path: &str, error: String| format!("{path}: {error}");
    let pem = |path: &str| fs::read(path).map_err(|error| in_file(path, error.to_string()));
    let chain = CertificateDer::pem_slice_iter(&pem(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| in_file(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(in_file(
            certificate,
            "it contains no certificate".to_owned(),
        ));
    }
    let secret = PrivateKeyDer::from_pem_slice(&pem(key)?)
        .map_err(|error| in_file(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| in_file(key, error.to_string()))?;
    Ok(Arc::new(config))
}

impl TlsListener {
    /// Accepts TLS on a listener.
    pub(super) fn over(listener: TcpListener, config: Arc<ServerConfig>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(HANDSHAKES_MAX);
        tokio::spawn(accept(listener, TlsAcceptor::from(config), sender));
        Ok(Self { address, ready })
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("never closed");
        let accepted = tokio::select! {
            () = ready.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection; trying again");
                sleep(ACCEPT_WAIT).await;
                continue;
            }
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    // Fails when the server has stopped.
                    let _ = ready.send((stream, peer)).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a TLS handshake failed; connection closed")
                }
                Err(_) => tracing::debug!("a TLS handshake timed out; connection closed"),
            }
            drop(permit);
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task ends only after this listener is dropped.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}
