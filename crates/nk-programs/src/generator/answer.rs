//! Whether an HTTP answer is whole and good.

/// Remembers the length of answers that were found good, so that most need no second look.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    known: Option<usize>,
}

impl Answers {
    /// Whether these bytes are one whole answer with status 200.
    pub(crate) fn is_whole(&mut self, bytes: &[u8]) -> bool {
        if !bytes.starts_with(b"HTTP/1.1 200 ") {
            return false;
        }
        if self.known == Some(bytes.len()) {
            return true;
        }
        let whole = length(bytes) == Some(bytes.len());
        if whole {
            self.known = Some(bytes.len());
        }
        whole
    }
}

/// The length that an answer says it has, header included.
fn length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let header = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let body = header.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    Some(end + body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_answers_and_others() {
        let good = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let mut answers = Answers::default();
        for cut in 0..good.len() {
            assert!(!answers.is_whole(&good[..cut]));
        }
        assert!(answers.is_whole(good) && answers.is_whole(good));
        assert!(!answers.is_whole(b"HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\nabc"));
        assert!(!answers.is_whole(&[good.as_slice(), b"x"].concat()));
    }
}
