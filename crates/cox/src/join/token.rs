//! What a node joins with: a bootstrap token, and the pin of the authority it may tell it to.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;

use super::trust::Pin;

/// `ID.SECRET:sha256:PIN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// The bootstrap token, `ID.SECRET`.
    pub bootstrap: String,
    /// The pin of the cluster's authority.
    pub pin: Pin,
}

impl FromStr for JoinToken {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (bootstrap, pin) = text.split_once(':').context("a token looks like ID.SECRET:sha256:PIN")?;
        let (id, secret) = bootstrap.split_once('.').context("a token looks like ID.SECRET:sha256:PIN")?;
        let fits = |part: &str, length: usize| {
            part.len() == length
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        anyhow::ensure!(
            fits(id, 6) && fits(secret, 16),
            "a token's id has 6 letters or digits, its secret 16"
        );
        Ok(Self { bootstrap: bootstrap.to_owned(), pin: pin.parse()? })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.bootstrap, self.pin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read() {
        let text = format!("abcdef.0123456789abcdef:sha256:{}", "0f".repeat(32));
        let token: JoinToken = text.parse().unwrap();
        assert_eq!((token.to_string(), token.pin), (text.clone(), Pin([0x0f; 32])));
        for bad in ["abcdef.0123456789abcdef", &text[1..], &text[..text.len() - 2], &text.replace("0f", "zz")]
        {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}
