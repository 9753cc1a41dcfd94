//! What the file says of this gateway as an issuer.

use super::convert::{Reader, Result};
use super::keys::{self, KeyFileError};
use super::{file, values};
use crate::joining::IssuerSettings;
use serde_saphyr::Spanned;
use std::sync::Arc;
use vp::identity::text::{Label, decode};
use vp::identity::{Issuer, Trust};

/// A signing key with its delegation is some 500 bytes of base64.
const FILE_BYTES_MAX: u64 = 16 << 10;

impl Reader<'_> {
    /// None as well where the key cannot be read by who only checks the file.
    pub(super) fn issuer(
        &mut self,
        issuer: Option<&Spanned<file::Issuer>>,
        trust: &Trust,
        is_hub: bool,
    ) -> Result<Option<Arc<IssuerSettings>>> {
        let Some(Spanned { value: written, .. }) = issuer else { return Ok(None) };
        let at = written.key.referenced;
        let file = self.text("issuer.key", &written.key, values::path)?;
        let endpoint = self.optional("issuer.endpoint", written.endpoint.as_ref(), values::endpoint)?;
        let endpoint = endpoint.and(written.endpoint.as_ref()).map(|text| text.value.clone());
        let tls = self.optional("issuer.tls", written.tls.as_ref(), values::endpoint)?;
        let tls = tls.and(written.tls.as_ref()).map(|text| text.value.clone());
        if let Some(text) = written.tls.as_ref().filter(|_| !is_hub) {
            let message = "issuer.tls: only hubs are reached over TLS, expected `hub:` beside `issuer:`";
            return Err(self.fail(text.referenced, message));
        }
        let text = match keys::read_text(&file, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.is_permission() && self.host.interfaces.is_empty() => {
                self.warn(at, format!("issuer.key: not checked: {error}"));
                return Ok(None);
            }
            Err(KeyFileError::Missing(file)) => {
                let message = format!(
                    "issuer.key: there is no {}, expected what vp-ctl authority delegate wrote",
                    file.display()
                );
                return Err(self.fail(at, message));
            }
            Err(error) => return Err(self.fail(at, format!("issuer.key: {error}"))),
        };
        let refused = |error: &dyn std::fmt::Display| format!("issuer.key: {}: {error}", file.display());
        let bytes = decode(Label::SigningKey, &text).map_err(|error| self.fail(at, refused(&error)))?;
        let key = Issuer::read(&bytes).map_err(|error| self.fail(at, refused(&error)))?;
        if key.delegation().is_none() {
            let message =
                "it is the authority's own key, which stays offline; expected what vp-ctl authority delegate wrote";
            return Err(self.fail(at, refused(&message)));
        }
        if !trust.has(key.tenant(), &key.authority_key()) {
            let message = format!("its authority is not in `trust`, expected it there for tenant {}", key.tenant());
            return Err(self.fail(at, refused(&message)));
        }
        Ok(Some(Arc::new(IssuerSettings { file, issuer: key, endpoint, tls })))
    }
}
