//! "Did you mean ...?" for keys in files and words on the command line.

/// The known word nearest to `word`, if it is near enough to be a slip of the fingers.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        // A third of the word wrong is a slip; more is another word.
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// A TOML error as people read it: line and column, the cause, and for an unknown key a suggestion.
pub(crate) fn toml_error(error: &toml::de::Error, known: &[&str]) -> String {
    let mut text = error.to_string().trim_end().to_owned();
    if let Some(rest) = error.message().strip_prefix("unknown field `")
        && let Some((word, _)) = rest.split_once('`')
        && let Some(near) = nearest(word, known)
    {
        text.push_str(&format!("\ndid you mean `{near}`?"));
    }
    text
}

/// Edits (insert, delete, replace, swap of neighbours) between two words. Words are short: the plain table will do.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in table.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in table[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(table[i - 2][j - 2] + 1);
            }
            table[i][j] = best;
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let known = ["address", "server_name", "token_file"];
        assert_eq!(nearest("adress", &known), Some("address"));
        assert_eq!(nearest("addrses", &known), Some("address"));
        assert_eq!(nearest("server-name", &known), Some("server_name"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(nearest("", &known), None);
    }
}
