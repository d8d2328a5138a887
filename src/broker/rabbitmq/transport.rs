//! Opens the socket of a RabbitMQ connection, with TLS where the URL says `amqps`.
//!
//! TLS is rustls with ring, as everywhere else. lapin could do it, but only together with a reader
//! of PKCS#12 files, which is forty crates.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures::{
    Stream,
    io::{AsyncRead, AsyncWrite},
};
use lapin::{
    Connection, ConnectionProperties,
    tcp::AsyncTcpStream,
    uri::{AMQPScheme, AMQPUri},
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, time::Sleep};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{
    compat::{Compat, TokioAsyncReadCompatExt as _},
    either::Either,
};

type Socket = Compat<Either<TcpStream, TlsStream<TcpStream>>>;

/// Connects to the broker at a URL.
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
) -> lapin::Result<Connection> {
    let tokio = Tokio::current();
    let runtime = Runtime::new(RuntimeParts::new(tokio.clone(), Sockets(tokio)));
    let open = async |uri: AMQPUri, _| {
        let tls = match uri.scheme {
            AMQPScheme::AMQP => None,
            AMQPScheme::AMQPS => Some(client_config(system_roots()?)?),
        };
        Ok(AsyncTcpStream::Plain(open(&uri, tls).await?))
    };
    Connection::connector(uri, runtime, open, properties).await
}

/// Opens the socket; `tls` is what to trust, for TLS.
async fn open(uri: &AMQPUri, tls: Option<Arc<ClientConfig>>) -> io::Result<Socket> {
    let host = uri.authority.host.as_str();
    let stream = TcpStream::connect((host, uri.authority.port)).await?;
    stream.set_nodelay(true)?;
    let stream = match tls {
        None => Either::Left(stream),
        Some(config) => {
            let failed = |message: String| io::Error::other(format!("TLS with {host}: {message}"));
            let name =
                ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
            let stream = TlsConnector::from(config)
                .connect(name, stream)
                .await
                .map_err(|error| failed(error.to_string()))?;
            Either::Right(stream)
        }
    };
    Ok(stream.compat())
}

/// The authorities that the system trusts, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
fn system_roots() -> io::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found
            .errors
            .first()
            .map_or_else(String::new, |error| format!(": {error}"));
        return Err(io::Error::other(format!(
            "TLS: no certificate authority is trusted here{why}; SSL_CERT_FILE names a file of them"
        )));
    }
    for error in found.errors {
        tracing::warn!(%error, "a certificate authority could not be read");
    }
    Ok(roots)
}

fn client_config(roots: RootCertStore) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// tokio's reactor with our own type of stream, as lapin wants a runtime that names it.
#[derive(Clone, Debug)]
struct Sockets(Tokio);

impl Reactor for Sockets {
    type TcpStream = Socket;
    type Sleep = Sleep;

    /// lapin registers no sockets besides those that [`open`] gives it.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Socket, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "the future must not borrow the runtime"
    )]
    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Either::Left(stream).compat())
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails at its first error")]
mod tests {
    use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const CERTIFICATE: &str = "tests/fixtures/tls/cert.pem";
    const KEY: &str = "tests/fixtures/tls/key.pem";

    /// A server that sends back what it gets, with the certificate of the fixtures.
    async fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(CERTIFICATE).unwrap()],
                PrivateKeyDer::from_pem_file(KEY).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let (mut from, mut to) = tokio::io::split(stream);
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                }
            }
        });
        port
    }

    fn uri(port: u16) -> AMQPUri {
        format!("amqps://localhost:{port}/%2f").parse().unwrap()
    }

    #[tokio::test]
    async fn speaks_tls_with_a_server_that_is_trusted() {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(CERTIFICATE).unwrap())
            .unwrap();
        let tls = client_config(roots).unwrap();
        let mut socket = open(&uri(echo().await), Some(tls)).await.unwrap();
        socket.write_all(b"AMQP").await.unwrap();
        socket.flush().await.unwrap();
        let mut answer = [0; 4];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"AMQP");
    }

    #[tokio::test]
    async fn refuses_a_server_that_is_not_trusted() {
        let tls = client_config(RootCertStore::empty()).unwrap();
        let error = open(&uri(echo().await), Some(tls)).await.unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("TLS with localhost: invalid peer certificate"),
            "{message}"
        );
    }
}
