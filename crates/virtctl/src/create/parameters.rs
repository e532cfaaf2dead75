//! Values of flags with parts: `src:image:1,bootorder:2`.

use anyhow::{Context, bail};

/// Parts by their names.
#[derive(Debug)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// # Errors
    /// A part has no name or no value, or comes twice.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut found: Vec<(String, String)> = Vec::new();
        for part in text.split(',') {
            let Some((name, value)) = part
                .split_once(':')
                .filter(|(name, value)| !name.is_empty() && !value.is_empty())
            else {
                bail!("{part:?} is not NAME:VALUE");
            };
            if found.iter().any(|(known, _)| known == name) {
                bail!("{name} is given twice");
            }
            found.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self(found))
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(index).1)
    }

    pub(super) fn required(&mut self, name: &str) -> anyhow::Result<String> {
        self.take(name).with_context(|| format!("{name}:VALUE is missing"))
    }

    /// # Errors
    /// It is no number from 1.
    pub(super) fn boot_order(&mut self) -> anyhow::Result<Option<u32>> {
        let Some(text) = self.take("bootorder") else {
            return Ok(None);
        };
        match text.parse() {
            Ok(order) if order > 0 => Ok(Some(order)),
            _ => bail!("bootorder:{text} is no number from 1"),
        }
    }

    /// # Errors
    /// There are parts that nobody has asked for.
    pub(super) fn done(self) -> anyhow::Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => bail!("{name} is no parameter of it"),
        }
    }
}
