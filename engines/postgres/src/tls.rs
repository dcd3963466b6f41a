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

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest;

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

/// The certificate that the server of one connection showed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown(Arc<Mutex<Option<CertificateDer<'static>>>>);

impl Shown {
    /// What binds a SCRAM login to this TLS connection (`tls-server-end-point`, RFC 5929), where the certificate's
    /// signature says with which hash. The driver's own TLS adapter does not tell it.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let certificate: &[u8] = shown.as_ref()?;
        Some(
            digest::digest(signature_hash(certificate)?, certificate)
                .as_ref()
                .to_vec(),
        )
    }
}

/// The hash of a certificate's signature. MD5 and SHA-1 count as SHA-256.
fn signature_hash(certificate: &[u8]) -> Option<&'static digest::Algorithm> {
    /// The algorithms of RFC 4055 and RFC 5758, as the bytes of their object identifiers.
    const RSA: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA_SHA1: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
    const ECDSA_SHA2: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    let (inside, _) = element(certificate)?;
    let (_, after_content) = element(inside)?;
    let (algorithm, _) = element(after_content)?;
    let (identifier, _) = element(algorithm)?;
    if identifier == ECDSA_SHA1 {
        return Some(&digest::SHA256);
    }
    let (last, family) = identifier.split_last()?;
    match (family, last) {
        (family, 4 | 5 | 11) if family == RSA => Some(&digest::SHA256),
        (family, 12) if family == RSA => Some(&digest::SHA384),
        (family, 13) if family == RSA => Some(&digest::SHA512),
        (family, 2) if family == ECDSA_SHA2 => Some(&digest::SHA256),
        (family, 3) if family == ECDSA_SHA2 => Some(&digest::SHA384),
        (family, 4) if family == ECDSA_SHA2 => Some(&digest::SHA512),
        _ => None,
    }
}

/// The first element of DER: its content, and what follows it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        let length = digits
            .iter()
            .fold(0, |length, digit| (length << 8) | usize::from(*digit));
        (length, rest)
    };
    rest.split_at_checked(length)
}

/// Makes the TLS half of a connection; nothing where TLS is not wanted.
pub(crate) fn connector(
    params: &Params,
) -> Result<Option<(MakeRustlsConnect, Shown)>, EngineError> {
    if params.ssl_mode == SslMode::Disable {
        return Ok(None);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let shown = Shown::default();
    let verifier = verifier(params, &provider, shown.clone())?;
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
    Ok(Some((MakeRustlsConnect::new(config), shown)))
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
    shown: Shown,
) -> Result<Arc<dyn ServerCertVerifier>, EngineError> {
    let mut verifier = Verifier {
        shown,
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
    shown: Shown,
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
        *self.shown.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(end_entity.clone().into_owned());
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
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
