//! Steps over JSON without reading it: where a value ends, and that it is JSON until there.
//!
//! Only speed is asked of it. Where it says none, the text is no JSON or just unusual: `serde_json` decides.

/// More containers in one another do not fit the bits of `Scanner::container`.
const OPEN_MAX: u64 = u64::MAX >> 2;
const ONES: u64 = u64::MAX / 0xff;
const HIGH_BITS: u64 = ONES << 7;

/// A place in a text.
pub struct Scanner<'m> {
    text: &'m str,
    at: usize,
}

impl<'m> Scanner<'m> {
    /// At the start of `text`.
    pub fn new(text: &'m str) -> Self {
        Scanner { text, at: 0 }
    }

    /// How many bytes it has stepped over.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Steps over `text`, if that comes now.
    #[inline(always)]
    pub fn starts_with(&mut self, text: &str) -> bool {
        let here = self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(text.as_bytes()));
        if here {
            self.at += text.len();
        }
        here
    }

    /// Steps over `byte`, if that comes now.
    #[inline(always)]
    pub fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Steps over white space.
    #[inline(always)]
    pub fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// A key that has no escapes, without its quotes.
    pub fn key(&mut self) -> Option<&'m str> {
        let start = self.at + 1;
        self.string()?;
        self.text.get(start..self.at - 1).filter(|key| !key.contains('\\'))
    }

    /// A value, as it is written.
    #[inline(always)]
    pub fn value(&mut self) -> Option<&'m str> {
        self.space();
        let start = self.at;
        match self.peek()? {
            b'{' | b'[' => self.container()?,
            _ => self.scalar()?,
        }
        self.text.get(start..self.at)
    }

    /// That nothing follows.
    pub fn end(&mut self) -> Option<()> {
        self.space();
        (self.at == self.text.len()).then_some(())
    }

    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline(always)]
    fn scalar(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.string(),
            b't' => self.starts_with("true").then_some(()),
            b'f' => self.starts_with("false").then_some(()),
            b'n' => self.starts_with("null").then_some(()),
            _ => self.number(),
        }
    }

    fn container(&mut self) -> Option<()> {
        // A bit for each open container, 1 for an object, above them a 1 that shows where they end.
        let mut open = 1u64;
        loop {
            if open > OPEN_MAX {
                return None;
            }
            match self.peek()? {
                b'{' => {
                    open = open << 1 | 1;
                    self.at += 1;
                    self.space();
                    if self.take(b'}').is_none() {
                        self.entry()?;
                        continue;
                    }
                    open >>= 1;
                }
                b'[' => {
                    open <<= 1;
                    self.at += 1;
                    self.space();
                    if self.take(b']').is_none() {
                        continue;
                    }
                    open >>= 1;
                }
                _ => self.scalar()?,
            }
            // A value has ended: what of the containers ends with it?
            loop {
                if open == 1 {
                    return Some(());
                }
                self.space();
                let in_object = open & 1 == 1;
                match self.peek()? {
                    b',' => {
                        self.at += 1;
                        self.space();
                        if in_object {
                            self.entry()?;
                        }
                        break;
                    }
                    b'}' if in_object => self.at += 1,
                    b']' if !in_object => self.at += 1,
                    _ => return None,
                }
                open >>= 1;
            }
        }
    }

    /// The key of an object's entry, up to its value.
    fn entry(&mut self) -> Option<()> {
        self.string()?;
        self.space();
        self.take(b':')?;
        self.space();
        Some(())
    }

    #[inline(always)]
    fn string(&mut self) -> Option<()> {
        self.take(b'"')?;
        loop {
            self.plain();
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
    }

    /// Steps to the next quote, backslash or control character: eight bytes at a time, by Mycroft's test for
    /// a zero byte. The lowest byte that it finds is right; a carry may spoil those above it.
    #[inline(always)]
    fn plain(&mut self) {
        let (chunks, _) = self.text.as_bytes()[self.at..].as_chunks();
        for chunk in chunks {
            let bytes = u64::from_le_bytes(*chunk);
            let quote = bytes ^ (ONES * u64::from(b'"'));
            let backslash = bytes ^ (ONES * u64::from(b'\\'));
            let found = bytes.wrapping_sub(ONES * 0x20) & !bytes
                | quote.wrapping_sub(ONES) & !quote
                | backslash.wrapping_sub(ONES) & !backslash;
            if found & HIGH_BITS != 0 {
                self.at += (found & HIGH_BITS).trailing_zeros() as usize / 8;
                return;
            }
            self.at += 8;
        }
        while self.peek().is_some_and(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
            self.at += 1;
        }
    }

    fn escape(&mut self) -> Option<()> {
        self.at += 1;
        match self.peek()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
            b'u' => {
                let digits = self.text.as_bytes().get(self.at + 1..self.at + 5)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                self.at += 5;
            }
            _ => return None,
        }
        Some(())
    }

    fn number(&mut self) -> Option<()> {
        let _sign = self.take(b'-');
        if self.take(b'0').is_none() {
            self.digits()?;
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if self.take(b'e').or_else(|| self.take(b'E')).is_some() {
            let _sign = self.take(b'+').or_else(|| self.take(b'-'));
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (start < self.at).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 30_000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_is_json_is_what_serde_json_says(
            tokens in prop::collection::vec(prop::sample::select(TOKENS.to_vec()), 1..9)
        ) {
            let text = tokens.concat();
            let mut scanner = Scanner::new(&text);
            let value = scanner.value().filter(|_| scanner.end().is_some());
            prop_assert_eq!(value.is_some(), serde_json::from_str::<IgnoredAny>(&text).is_ok(), "{}", text);
            prop_assert!(value.is_none_or(|value| value == text.trim()));
        }
    }

    const TOKENS: [&str; 16] = [
        "{",
        "}",
        "[",
        "]",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"k\":",
        "\"a long \\\"text\\u00e9\"",
        "-0",
        "1.5e3",
        "null",
        " ",
    ];
}
