//! TLS to a server: always with a certificate that is trusted and names the host.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use fettler_engine::EngineError;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Files for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities to trust instead of the machine's.
    pub ca: Option<PathBuf>,
    /// The client's own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Begins TLS on a connection to `host`.
///
/// # Errors
///
/// [`EngineError::Missing`] where a file cannot be used, or the server shows no certificate that is trusted and names the host.
pub async fn begin(
    files: &TlsFiles,
    host: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, EngineError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| unusable(&format!("the host {host}"), &error))?;
    let connector = TlsConnector::from(Arc::new(config(files)?));
    connector
        .connect(name, stream)
        .await
        .map_err(|error| EngineError::Missing {
            code: "tls",
            what: format!("no TLS connection to {host}: {error}"),
            remedy: "check that the port is the server's TLS port, and `ca`, `cert` and `key` in the database's URL"
                .to_owned(),
        })
}

fn config(files: &TlsFiles) -> Result<ClientConfig, EngineError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("TLS", &error))?;
    let builder = match &files.ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| unusable(&path.display().to_string(), &error))?;
            }
            builder.with_root_certificates(roots)
        }
        None => {
            let verifier = rustls_platform_verifier::Verifier::new(provider)
                .map_err(|error| unusable("the machine's list of certificates", &error))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let Some((certificate, key)) = &files.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| unusable(&key.display().to_string(), &error))?;
    builder
        .with_client_auth_cert(chain, secret)
        .map_err(|error| unusable(&certificate.display().to_string(), &error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, EngineError> {
    let name = path.display().to_string();
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| unusable(&name, &error))?
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(&name, &error))?;
    if found.is_empty() {
        return Err(unusable(&name, &"it holds no certificate"));
    }
    Ok(found)
}

fn unusable(subject: &str, error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Missing {
        code: "tls",
        what: format!("{subject} cannot be used for TLS: {error}"),
        remedy: "check `ca`, `cert` and `key` in the database's URL".to_owned(),
    }
}
