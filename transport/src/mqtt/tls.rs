//! The TLS side: rustls with ring, from PEM files that are read at every connect.

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::TlsFiles;

/// Reads the files and builds the configuration.
///
/// # Errors
/// A sentence that names the file and what is wrong with it.
pub fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(files.ca.as_deref())?);
    let config = match (&files.cert, &files.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let private_key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("the client key {} cannot be used: {error}", key.display()))?;
            builder.with_client_auth_cert(chain, private_key).map_err(|error| {
                format!(
                    "the client certificate {} and key {} do not fit: {error}",
                    cert.display(),
                    key.display()
                )
            })?
        }
        (Some(_), None) => return Err("a client certificate needs its key file, too".to_owned()),
        (None, Some(_)) => return Err("a client key needs its certificate file, too".to_owned()),
    };
    Ok(Arc::new(config))
}

/// The certificates to trust: those of the file, or the public roots.
fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let Some(path) = ca else {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("a certificate in {} cannot be trusted: {error}", path.display()))?;
    }
    Ok(roots)
}

/// The certificates of a PEM file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = |error| format!("the certificate file {} cannot be read: {error}", path.display());
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if certificates.is_empty() {
        return Err(format!("the certificate file {} has no certificate in it", path.display()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn without_files_the_public_roots_are_trusted() {
        assert!(client_config(&TlsFiles::default()).is_ok());
    }

    #[test]
    fn an_unusable_file_is_named() {
        let missing = PathBuf::from("/nonexistent/ca.crt");
        let error =
            client_config(&TlsFiles { ca: Some(missing), ..TlsFiles::default() }).expect_err("missing");
        assert!(error.contains("/nonexistent/ca.crt"), "{error}");

        let dir = tempfile::tempdir().expect("a directory");
        let empty = dir.path().join("empty.crt");
        std::fs::write(&empty, "no PEM in here").expect("written");
        let error = client_config(&TlsFiles { ca: Some(empty), ..TlsFiles::default() }).expect_err("empty");
        assert!(error.contains("empty.crt") && error.contains("no certificate"), "{error}");
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let files = TlsFiles { cert: Some("/tmp/c".into()), ..TlsFiles::default() };
        assert!(client_config(&files).expect_err("no key").contains("key"));
    }
}
