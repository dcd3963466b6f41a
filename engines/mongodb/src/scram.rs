//! SCRAM, by which a client shows that it knows a password without sending it, and the server that it knew it before (RFC
//! 5802, RFC 7677; MongoDB's own: "Authentication" of its driver specifications).

use std::num::NonZeroU32;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest, hmac,
    pbkdf2::{self, PBKDF2_HMAC_SHA1, PBKDF2_HMAC_SHA256},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use md5::{Digest as _, Md5};

/// Rounds below this are refused: a server that asks for fewer wants to learn the password (RFC 7677, section 4).
const LEAST_ROUNDS: u32 = 4096;
/// Rounds above this are refused: a server that asks for more wants to keep this machine busy.
const MOST_ROUNDS: u32 = 10_000_000;

/// Which hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
}

impl Hash {
    /// The mechanism's name.
    pub(crate) const fn mechanism(self) -> &'static str {
        match self {
            Self::Sha1 => "SCRAM-SHA-1",
            Self::Sha256 => "SCRAM-SHA-256",
        }
    }

    fn length(self) -> usize {
        match self {
            Self::Sha1 => digest::SHA1_OUTPUT_LEN,
            Self::Sha256 => digest::SHA256_OUTPUT_LEN,
        }
    }

    fn hmac(self, key: &[u8], text: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
        };
        hmac::sign(&hmac::Key::new(algorithm, key), text)
            .as_ref()
            .to_vec()
    }

    fn digest(self, text: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
        };
        digest::digest(algorithm, text).as_ref().to_vec()
    }

    fn stretch(self, password: &[u8], salt: &[u8], rounds: NonZeroU32) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha1 => PBKDF2_HMAC_SHA1,
            Self::Sha256 => PBKDF2_HMAC_SHA256,
        };
        let mut key = vec![0; self.length()];
        pbkdf2::derive(algorithm, rounds, salt, password, &mut key);
        key
    }
}

/// A conversation that has begun.
pub(crate) struct Scram {
    hash: Hash,
    password: Vec<u8>,
    nonce: String,
    first_bare: String,
}

/// What the server's last message has to say.
pub(crate) struct Expected(Vec<u8>);

impl Scram {
    /// Begins. MongoDB hashes the password before SHA-1, and prepares it as RFC 4013 says before SHA-256.
    pub(crate) fn begin(
        hash: Hash,
        user: &str,
        password: &str,
        nonce: &str,
    ) -> Result<Self, String> {
        let password = prepared(hash, user, password)?;
        Ok(Self::with_password(hash, user, password, nonce))
    }

    fn with_password(hash: Hash, user: &str, password: Vec<u8>, nonce: &str) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Self {
            hash,
            password,
            nonce: nonce.to_owned(),
            first_bare: format!("n={user},r={nonce}"),
        }
    }

    /// The first message to the server.
    pub(crate) fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The message that answers the server's first.
    pub(crate) fn answer(self, server_first: &str) -> Result<(String, Expected), String> {
        let field = |name: &str| {
            server_first
                .split(',')
                .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| format!("its first message has no `{name}`"))
        };
        let nonce = field("r")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("its nonce does not go on where ours ends".to_owned());
        }
        let salt = BASE64_STANDARD
            .decode(field("s")?)
            .map_err(|_| "its salt cannot be read".to_owned())?;
        let rounds = field("i")?
            .parse::<u32>()
            .ok()
            .filter(|rounds| (LEAST_ROUNDS..=MOST_ROUNDS).contains(rounds))
            .and_then(NonZeroU32::new)
            .ok_or_else(|| "its number of rounds is not acceptable".to_owned())?;
        let hash = self.hash;
        let salted = hash.stretch(&self.password, &salt, rounds);
        let client_key = hash.hmac(&salted, b"Client Key");
        let without_proof = format!("c=biws,r={nonce}");
        let all = format!("{},{server_first},{without_proof}", self.first_bare);
        let signature = hash.hmac(&hash.digest(&client_key), all.as_bytes());
        let proof: Vec<u8> = client_key
            .iter()
            .zip(&signature)
            .map(|(a, b)| a ^ b)
            .collect();
        let server_key = hash.hmac(&salted, b"Server Key");
        Ok((
            format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)),
            Expected(hash.hmac(&server_key, all.as_bytes())),
        ))
    }
}

/// A password as it is hashed.
fn prepared(hash: Hash, user: &str, password: &str) -> Result<Vec<u8>, String> {
    Ok(match hash {
        Hash::Sha1 => {
            let whole = Md5::digest(format!("{user}:mongo:{password}"));
            hex::encode(whole).into_bytes()
        }
        Hash::Sha256 => stringprep::saslprep(password)
            .map_err(|_| "the password has letters that no password may have".to_owned())?
            .into_owned()
            .into_bytes(),
    })
}

/// Whether what a server keeps (`salt`, `stored_key`, in Base64) is of this password; none where it cannot be read.
pub(crate) fn is_password(
    hash: Hash,
    user: &str,
    password: &str,
    salt: &str,
    rounds: u32,
    stored_key: &str,
) -> Option<bool> {
    let rounds = NonZeroU32::new(rounds.min(MOST_ROUNDS))?;
    let salt = BASE64_STANDARD.decode(salt).ok()?;
    let kept = BASE64_STANDARD.decode(stored_key).ok()?;
    let password = prepared(hash, user, password).ok()?;
    let salted = hash.stretch(&password, &salt, rounds);
    let key = hash.digest(&hash.hmac(&salted, b"Client Key"));
    Some(verify_slices_are_equal(&key, &kept).is_ok())
}

impl Expected {
    /// Whether the server's last message shows that it knew the password.
    pub(crate) fn is(&self, server_final: &str) -> bool {
        server_final
            .split(',')
            .find_map(|part| part.strip_prefix("v="))
            .and_then(|text| BASE64_STANDARD.decode(text).ok())
            .is_some_and(|said| verify_slices_are_equal(&said, &self.0).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7677_comes_out() {
        let scram = Scram::begin(Hash::Sha256, "user", "pencil", "rOprNGfwEbeRWgbNEkqO").unwrap();
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (answer, expected) = scram
            .answer("r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
            .unwrap();
        assert_eq!(
            answer,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(expected.is("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!expected.is("v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!expected.is("e=other-error"));
    }

    #[test]
    fn the_example_of_rfc_5802_comes_out() {
        let scram = Scram::with_password(
            Hash::Sha1,
            "user",
            b"pencil".to_vec(),
            "fyko+d2lbbFgONRv9qkxdawL",
        );
        let (answer, expected) = scram
            .answer("r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096")
            .unwrap();
        assert_eq!(
            answer,
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="
        );
        assert!(expected.is("v=rmF9pqV8S7suAoZWja4dJRkFsKQ="));
    }

    #[test]
    fn p9_a_server_that_only_wants_to_learn_the_password_is_refused() {
        for first in [
            "r=other,s=QSXCR+Q6sek8bf92,i=4096",
            "r=abc,s=QSXCR+Q6sek8bf92,i=4096",
            "r=abcd,s=QSXCR+Q6sek8bf92,i=1",
            "r=abcd,s=QSXCR+Q6sek8bf92,i=4000000000",
            "r=abcd,s=?,i=4096",
            "nothing",
        ] {
            let scram = Scram::begin(Hash::Sha256, "u", "p", "abc").unwrap();
            assert!(scram.answer(first).is_err(), "{first}");
        }
    }

    #[test]
    fn a_comma_in_a_name_is_no_end_of_it() {
        let scram = Scram::begin(Hash::Sha256, "a,b=c", "p", "n").unwrap();
        assert_eq!(scram.first(), "n,,n=a=2Cb=3Dc,r=n");
    }
}
