//! TLS as libpq's `sslmode` means it.
//!
//! | mode | what is checked |
//! |---|---|
//! | `disable` | no TLS |
//! | `prefer` | TLS where the server has it, any certificate |
//! | `require` | TLS, any certificate |
//! | `verify-ca` | the certificate's issuer is trusted, or the certificate itself is in `sslrootcert` |
//! | `verify-full` | the same, and the certificate names the host |
//!
//! Trusted are the certificates in `sslrootcert` where it is given, else those that the machine trusts.

use std::{path::Path, sync::Arc};

use fettler_engine::EngineError;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::params::{Params, SslMode};

/// Makes the TLS half of a connection; nothing where TLS is not wanted.
pub(crate) fn connector(params: &Params) -> Result<Option<MakeRustlsConnect>, EngineError> {
    if params.ssl_mode == SslMode::Disable {
        return Ok(None);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = verifier(params, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("TLS", &error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match (&params.ssl_cert, &params.ssl_key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unusable(&key.display().to_string(), &error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unusable(&certificate.display().to_string(), &error))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Some(MakeRustlsConnect::new(config)))
}

fn unusable(subject: &str, error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Missing {
        code: "tls",
        what: format!("{subject} cannot be used for TLS: {error}"),
        remedy: "check sslmode, sslrootcert, sslcert and sslkey in the database's URL".to_owned(),
    }
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

fn verifier(
    params: &Params,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, EngineError> {
    let mut verifier = Verifier {
        trust: None,
        pinned: Vec::new(),
        check_name: params.ssl_mode == SslMode::VerifyFull,
        provider: Arc::clone(provider),
    };
    if matches!(params.ssl_mode, SslMode::VerifyCa | SslMode::VerifyFull) {
        verifier.trust = Some(match &params.ssl_root_cert {
            Some(path) => {
                verifier.pinned = certificates(path)?;
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(verifier.pinned.iter().cloned());
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                    .build()
                    .map_err(|error| unusable(&path.display().to_string(), &error))?
            }
            None => Arc::new(
                rustls_platform_verifier::Verifier::new(Arc::clone(provider))
                    .map_err(|error| unusable("the machine's list of certificates", &error))?,
            ),
        });
    }
    Ok(Arc::new(verifier))
}

/// Looks at a server's certificate as far as the mode asks for.
#[derive(Debug)]
struct Verifier {
    /// Who issues certificates that are believed; nobody is asked where any certificate will do.
    trust: Option<Arc<dyn ServerCertVerifier>>,
    /// Certificates that are believed themselves, as one that signs itself has to be.
    pinned: Vec<CertificateDer<'static>>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        if self.pinned.iter().any(|pinned| pinned == end_entity) {
            if self.check_name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let wrong_name = |error: &rustls::Error| {
            matches!(
                error,
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                        | CertificateError::NotValidForNameContext { .. }
                )
            )
        };
        match trust.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(error) if !self.check_name && wrong_name(&error) => {
                Ok(ServerCertVerified::assertion())
            }
            answer => answer,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
