//! Bearer tokens: a fixed table, and signed ones for service accounts.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use jiff::Timestamp;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Result};
use crate::hooks::UserInfo;
use crate::store::{Key, Store};

const BLOCK: usize = 64;
const ISSUER: &str = "https://kubernetes.default.svc";

/// Knows tokens, and issues them.
pub struct Tokens {
    fixed: Vec<(String, UserInfo)>,
    key: Vec<u8>,
}

#[derive(Deserialize, Serialize)]
struct Claims {
    iss: String,
    sub: String,
    iat: i64,
    exp: i64,
    uid: String,
}

impl Tokens {
    /// With these fixed tokens, signing with `key` (a random one if absent).
    pub fn new(fixed: Vec<(String, UserInfo)>, key: Option<Vec<u8>>) -> Self {
        let key = key.unwrap_or_else(|| {
            let mut key = vec![0; 32];
            rand::rng().fill_bytes(&mut key);
            key
        });
        Self { fixed, key }
    }

    /// The user of a request's token; `None` if it has no token.
    ///
    /// # Errors
    /// 401 for a token that is unknown, expired, or of an account that is gone.
    pub fn authenticate(&self, store: &Store, headers: &HeaderMap) -> Result<Option<UserInfo>> {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Ok(None);
        };
        let token = value
            .to_str()
            .ok()
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(Failure::unauthorized)?;
        self.user(store, token.trim())
            .map(Some)
            .ok_or_else(Failure::unauthorized)
    }

    /// The user of a token.
    pub fn user(&self, store: &Store, token: &str) -> Option<UserInfo> {
        if let Some((_, user)) = self
            .fixed
            .iter()
            .find(|(known, _)| same(known.as_bytes(), token.as_bytes()))
        {
            return Some(user.clone());
        }
        let (signed, signature) = token.rsplit_once('.')?;
        if !same(&self.sign(signed), &URL_SAFE_NO_PAD.decode(signature).ok()?) {
            return None;
        }
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.split_once('.')?.1).ok()?).ok()?;
        if claims.exp < Timestamp::now().as_second() {
            return None;
        }
        let (namespace, name) = claims.sub.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        let account = store.get(&Key::new(&"/serviceaccounts".into(), namespace, name))?;
        if *account.uid != *claims.uid {
            return None;
        }
        let groups = vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".into(),
        ];
        Some(UserInfo {
            username: claims.sub.clone(),
            uid: claims.uid,
            groups,
            ..UserInfo::default()
        })
    }

    /// A token of a service account.
    pub fn issue(&self, namespace: &str, name: &str, uid: &str, until: Timestamp) -> String {
        let claims = Claims {
            iss: ISSUER.into(),
            sub: format!("system:serviceaccount:{namespace}:{name}"),
            iat: Timestamp::now().as_second(),
            exp: until.as_second(),
            uid: uid.to_owned(),
        };
        let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        let signed = format!(
            "{head}.{}",
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap_or_default())
        );
        let signature = URL_SAFE_NO_PAD.encode(self.sign(&signed));
        format!("{signed}.{signature}")
    }

    /// HMAC-SHA256 (RFC 2104).
    fn sign(&self, text: &str) -> Vec<u8> {
        let mut key = if self.key.len() > BLOCK {
            Sha256::digest(&self.key).to_vec()
        } else {
            self.key.clone()
        };
        key.resize(BLOCK, 0);
        let padded = |pad: u8| key.iter().map(|byte| byte ^ pad).collect::<Vec<u8>>();
        let inner = Sha256::new().chain_update(padded(0x36)).chain_update(text).finalize();
        Sha256::new()
            .chain_update(padded(0x5c))
            .chain_update(inner)
            .finalize()
            .to_vec()
    }
}

/// Compares without telling where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
