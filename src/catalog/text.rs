//! The text of each statement of a file, as it was written.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

/// The statements of a file that can be parsed, in their order, with the comments above them.
pub(super) fn statements(text: &str) -> Vec<&str> {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location() else {
        return Vec::new();
    };
    let (mut found, mut begin, mut has_words) = (Vec::new(), 0, false);
    for token in &tokens {
        match token.token {
            Token::SemiColon => {
                let end = offset(text, token.span.start);
                if has_words {
                    found.push(text[begin..end].trim());
                }
                (begin, has_words) = (end + 1, false);
            }
            Token::Whitespace(_) | Token::EOF => {}
            _ => has_words = true,
        }
    }
    if has_words {
        found.push(text[begin..].trim());
    }
    found
}

/// Where a location, which counts lines and characters from 1, stands in a text.
fn offset(text: &str, location: Location) -> usize {
    let mut lines = text.split_inclusive('\n');
    let before: usize = lines.by_ref().take(location.line as usize - 1).map(str::len).sum();
    let line = lines.next().unwrap_or_default();
    let within = line.char_indices().nth(location.column as usize - 1).map_or(line.len(), |(at, _)| at);
    before + within
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_as_they_were_written() {
        let first = "-- What it is; really.\nCREATE VIEW a AS\nSELECT 'x;ÿ' AS \"ü;\"  -- of all";
        let second = "/* And ; this */ CREATE VIEW b AS SELECT 1";
        let text = format!("\n{first}\n;;\n  {second} ; -- done\n");
        assert_eq!(statements(&text), [first, second]);
        assert_eq!(statements(second), [second]);
        assert_eq!(statements(" -- nothing\n;"), [""; 0]);
        assert_eq!(statements("SELECT 'open"), [""; 0]);
    }
}
