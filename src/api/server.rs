//! The server: listens, with TLS if it is configured, and drains when told to stop.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use crate::{config::ApiConfig, shutdown::Shutdown};

use super::{
    routes::routes,
    state::Api,
    tls::{self, TlsListener},
};

/// Why the interface could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {message}; choose another api.listen")]
    Address {
        /// The address.
        address: String,
        /// What went wrong.
        message: String,
    },
    /// The certificate or its key cannot be used.
    #[error("cannot serve TLS: {0}")]
    Tls(String),
}

/// Starts serving in a task of its own, until told to stop; open requests then get the drain time to
/// finish. Returns the address listened on and the task.
///
/// # Errors
/// When the address cannot be listened on, or the certificate cannot be used.
pub async fn serve(
    api: Api,
    shutdown: Shutdown,
) -> Result<(SocketAddr, JoinHandle<()>), ServeError> {
    let address_error = |error: io::Error| ServeError::Address {
        address: api.config.listen.clone(),
        message: error.to_string(),
    };
    let listener = TcpListener::bind(&api.config.listen)
        .await
        .map_err(address_error)?;
    let address = listener.local_addr().map_err(address_error)?;
    let tls = tls_config(&api.config).map_err(ServeError::Tls)?;
    if !api.config.keys && !address.ip().is_loopback() {
        tracing::warn!(%address, "the HTTP interface accepts requests from anyone who can reach it; set api.keys");
    }
    // Open requests still need their answers while the server drains.
    let drained = Shutdown::new();
    let answers = api.answers.clone();
    tokio::spawn(answers.run(api.store.clone(), drained.clone()));
    let (drain, closing) = (api.drain, api.closing.clone());
    let routes = routes(api);
    let task = tokio::spawn(async move {
        let stop = async move {
            shutdown.requested().await;
            tokio::spawn(async move {
                sleep(drain).await;
                closing.request();
            });
        };
        let served = match tls {
            None => {
                let server = axum::serve(listener, routes);
                server.with_graceful_shutdown(stop).await
            }
            Some(config) => match TlsListener::over(listener, config) {
                Ok(listener) => {
                    let server = axum::serve(listener, routes);
                    server.with_graceful_shutdown(stop).await
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = served {
            tracing::error!(%error, "the HTTP server failed and accepts no more requests");
        }
        drained.request();
    });
    Ok((address, task))
}

fn tls_config(config: &ApiConfig) -> Result<Option<Arc<rustls::ServerConfig>>, String> {
    match (&config.tls_cert, &config.tls_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => tls::read(certificate, key).map(Some),
        _ => Err("api.tls_cert and api.tls_key must be set together".to_owned()),
    }
}
