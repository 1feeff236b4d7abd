//! X.509 for brokers and their clients: an authority, and what it signs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

/// PEM files of the broker's certificates.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority that signed the broker's and the client's certificate.
    pub ca: PathBuf,
    /// A client certificate, `CN=client`.
    pub client_cert: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
    /// An authority that signed neither.
    pub other_ca: PathBuf,
}

/// Signs certificates.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    /// Its own certificate, as PEM: whoever has it trusts what it signed.
    pub certificate: String,
}

/// A certificate and its key, as PEM.
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: rcgen::Issuer::new(params, key), certificate })
    }

    /// A certificate for these host names and addresses.
    ///
    /// # Errors
    /// When one of them is neither, or no key can be made.
    pub fn sign(&self, name: &str, alternatives: &[&str]) -> Result<Leaf> {
        let alternatives: Vec<_> = alternatives.iter().map(|&name| name.to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(alternatives)?;
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

impl Certificates {
    /// Writes them to a directory, with `server.crt` and `server.key` for a broker on this machine.
    pub(crate) fn generate(dir: &Path) -> Result<Self> {
        let authority = Authority::new("test authority")?;
        let files = Self {
            ca: dir.join("ca.crt"),
            client_cert: dir.join("client.crt"),
            client_key: dir.join("client.key"),
            other_ca: dir.join("other-ca.crt"),
        };
        fs::write(&files.ca, &authority.certificate)?;
        fs::write(&files.other_ca, Authority::new("another authority")?.certificate)?;
        let server = authority.sign("localhost", &["localhost", "127.0.0.1"])?;
        fs::write(dir.join("server.crt"), server.certificate)?;
        fs::write(dir.join("server.key"), server.key)?;
        let client = authority.sign("client", &["client"])?;
        fs::write(&files.client_cert, client.certificate)?;
        fs::write(&files.client_key, client.key)?;
        Ok(files)
    }
}
