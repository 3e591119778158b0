//! A table's values by their types, and a fault for each that is not what it must be.

use ipnet::IpNet;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    syntax::{join, unknown},
    text::{At, Findings, Place},
    value::{parse_prefix, prefix_fault},
};
use crate::near::nearest;

pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// Reads values of one section.
pub(super) struct Reader<'f, 't> {
    pub findings: &'f mut Findings<'t>,
    /// As in [`super::syntax::Section`].
    pub base: usize,
    pub is_whole: bool,
}

/// The values of a table in the order of its known keys.
pub(super) type Fields<'a, 't, const N: usize> = [Option<&'a Value<'t>>; N];

impl Reader<'_, '_> {
    /// Sorts a table's values by `known`, the last `optional` of which may be missing. A key that
    /// is nearly a known one is a fault, and its value is read as that one's.
    pub fn fields<'a, 't, const N: usize>(
        &mut self,
        table: &'a DeTable<'t>,
        place: &Place,
        known: [&str; N],
        optional: usize,
    ) -> Fields<'a, 't, N> {
        let mut fields = known.map(|key| table.get(key));
        for (key, value) in table.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref()))
        {
            let at = Place::new(self.base + key.span().start, join(&place.key, key.get_ref()));
            self.findings.add(&at, unknown(key.get_ref(), known));
            let near = nearest(key.get_ref(), known);
            if let Some(i) = known.iter().position(|key| near == Some(*key)) {
                fields[i].get_or_insert(value);
            }
        }
        for (key, _) in known.iter().zip(&fields).take(N - optional).filter(|(_, f)| f.is_none()) {
            if self.is_whole {
                let at = Place::new(place.offset, join(&place.key, key));
                self.findings.add(&at, format!("missing key {key:?}"));
            }
        }
        fields
    }

    pub fn place(&self, value: &Value<'_>, key: String) -> Place {
        Place::new(self.base + value.span().start, key)
    }

    pub fn wrong_type(&mut self, value: &Value<'_>, place: &Place, wanted: &str) {
        let found = match value.get_ref().type_str() {
            "table" if place.key.contains(".subnets.") => {
                "a table (a network's name with a dot needs quotes)"
            }
            "array" => "a list",
            "integer" => "an integer",
            "string" => "a string",
            "float" => "a number with a fraction",
            "boolean" => "a boolean",
            "datetime" => "a date",
            _ => "a table",
        };
        self.findings.add(place, format!("must be {wanted}, not {found}"));
    }

    /// A string that `parse` makes something of.
    pub fn string<T>(
        &mut self,
        value: &Value<'_>,
        key: String,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let place = self.place(value, key);
        match value.get_ref() {
            DeValue::String(text) => self.parsed(parse(text), place),
            _ => {
                self.wrong_type(value, &place, "a string");
                None
            }
        }
    }

    /// A list of strings that `parse` makes something of.
    pub fn strings<T>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<At<T>> {
        let DeValue::Array(list) = value.get_ref() else {
            let place = self.place(value, key.to_owned());
            self.wrong_type(value, &place, "a list of strings");
            return Vec::new();
        };
        let each = list.iter().enumerate();
        each.filter_map(|(i, value)| self.string(value, format!("{key}[{i}]"), &parse)).collect()
    }

    /// The same for a boolean, as it stands.
    pub fn boolean(&mut self, value: &Value<'_>, key: String) -> Option<At<bool>> {
        let place = self.place(value, key);
        match value.get_ref() {
            DeValue::Boolean(value) => Some(At { value: *value, place }),
            _ => {
                self.wrong_type(value, &place, "true or false, without quotes");
                None
            }
        }
    }

    /// The same for an integer.
    pub fn integer<T>(
        &mut self,
        value: &Value<'_>,
        key: String,
        parse: impl Fn(i128) -> Result<T, String>,
    ) -> Option<At<T>> {
        let place = self.place(value, key);
        match value.get_ref() {
            DeValue::Integer(n) => {
                // What is longer than 128 bits is too large for everything.
                let number = i128::from_str_radix(n.as_str(), n.radix()).unwrap_or(i128::MAX);
                self.parsed(parse(number), place)
            }
            DeValue::String(text) if text.parse::<i128>().is_ok() => {
                self.findings.add(&place, "must be an integer: write it without quotes");
                None
            }
            _ => {
                self.wrong_type(value, &place, "an integer");
                None
            }
        }
    }

    fn parsed<T>(&mut self, parsed: Result<T, String>, place: Place) -> Option<At<T>> {
        match parsed {
            Ok(value) => Some(At { value, place }),
            Err(message) => {
                self.findings.add(&place, message);
                None
            }
        }
    }

    /// A prefix or a list of them, without their host bits.
    pub fn prefixes(&mut self, value: &Value<'_>, key: &str) -> Vec<At<IpNet>> {
        let DeValue::Array(list) = value.get_ref() else {
            let place = self.place(value, key.to_owned());
            if !value.get_ref().is_str() {
                self.wrong_type(value, &place, "a prefix or a list of prefixes");
                return Vec::new();
            }
            return self.prefix(value, place.key).into_iter().collect();
        };
        if list.is_empty() {
            let place = self.place(value, key.to_owned());
            self.findings.add(&place, "the list is empty: write at least one prefix");
        }
        let each = list.iter().enumerate();
        each.filter_map(|(i, value)| self.prefix(value, format!("{key}[{i}]"))).collect()
    }

    fn prefix(&mut self, value: &Value<'_>, key: String) -> Option<At<IpNet>> {
        let mut prefix = self.string(value, key, parse_prefix)?;
        let net = prefix.value.trunc();
        if net != prefix.value {
            let message = format!("{} has bits beyond its prefix: write {net}", prefix.value);
            self.findings.add(&prefix.place, message);
            prefix.value = net;
        }
        if let Some(message) = prefix_fault(net) {
            self.findings.add(&prefix.place, message);
        }
        Some(prefix)
    }
}
