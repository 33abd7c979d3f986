//! The key itself, as its holder has it: `sg_ID_SECRET`. The id finds the record, the secret proves the
//! right. It has 256 random bits, so that a plain hash of it can't be turned back or guessed.

use std::fmt;
use std::io::Read;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "sg";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

/// Nothing prints it but [`Secret::reveal`].
pub struct Secret {
    pub id: String,
    secret: String,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.id)
    }
}

impl Secret {
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; ID_BYTES + SECRET_BYTES];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let (id, secret) = bytes.split_at(ID_BYTES);
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { id, secret: BASE64_URL_SAFE_NO_PAD.encode(secret) })
    }

    /// `None` for what can't be a key of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '_');
        let (prefix, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let good =
            prefix == PREFIX && id.len() == 2 * ID_BYTES && secret.len() < 100 && plain(id) && plain(secret);
        good.then(|| Self { id: id.into(), secret: secret.into() })
    }

    /// The whole key: for the one who has asked for it, once.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}_{}_{}", self.id, self.secret)
    }

    pub fn hash(&self) -> Hash {
        Hash(Sha256::digest(self.secret.as_bytes()).into())
    }
}

/// What is kept of a key.
#[derive(Clone, Debug)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Takes as long wherever the two differ.
    pub fn is(&self, other: &Hash) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// One that no key has: compared with where there is no record, so that both take as long.
    pub fn nobody() -> Self {
        Self([0; 32])
    }

    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii())?;
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_again_by_its_hash_alone() {
        let key = Secret::random().unwrap();
        let kept = Hash::parse(&key.hash().to_string()).unwrap();
        let shown = key.reveal();
        assert!(kept.is(&Secret::parse(&shown).unwrap().hash()));
        assert!(!kept.is(&Secret::random().unwrap().hash()));
        assert!(!kept.to_string().contains(shown.rsplit('_').next().unwrap()));
        assert!(!format!("{key:?}").contains(&key.secret));
    }

    #[test]
    fn what_is_no_key_is_told_from_one() {
        let good = Secret::random().unwrap().reveal();
        for (text, is_key) in [
            (good.as_str(), true),
            ("sg_0123456789ab_s-_x", true),
            ("", false),
            ("sg", false),
            ("sg_0123456789ab", false),
            ("sg_0123_secret", false),
            ("xx_0123456789ab_secret", false),
            ("sg_0123456789ab_se cret", false),
            ("sg_0123456789äb_secret", false),
        ] {
            assert_eq!(Secret::parse(text).is_some(), is_key, "{text:?}");
        }
    }
}
