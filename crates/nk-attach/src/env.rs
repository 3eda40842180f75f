//! Environment variables by which `nk run` tells the processes of a guest where to attach.

/// Path of the daemon's attach socket.
pub const SOCKET: &str = "NK_SOCKET";
/// The guest's token: 32 hexadecimal digits.
pub const TOKEN: &str = "NK_TOKEN";
/// Path of `libnetkernel.so`, as put into LD_PRELOAD.
pub const LIBRARY: &str = "NK_LIBRARY";

/// Formats a token.
#[must_use]
pub fn format_token(high: u64, low: u64) -> [u8; 32] {
    let mut out = [0u8; 32];
    for (i, o) in out.iter_mut().enumerate() {
        let word = if i < 16 { high } else { low };
        let nibble = (word >> (60 - 4 * (i % 16))) & 0xf;
        *o = b"0123456789abcdef"[nibble as usize];
    }
    out
}

/// Parses a token.
#[must_use]
pub fn parse_token(text: &[u8]) -> Option<(u64, u64)> {
    if text.len() != 32 {
        return None;
    }
    let mut words = [0u64; 2];
    for (i, b) in text.iter().enumerate() {
        let digit = (*b as char).to_digit(16)?;
        words[i / 16] = words[i / 16] << 4 | u64::from(digit);
    }
    Some((words[0], words[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive() {
        let t = (0x0123_4567_89ab_cdef, u64::MAX - 5);
        assert_eq!(parse_token(&format_token(t.0, t.1)), Some(t));
        assert_eq!(parse_token(b"xyz"), None);
        assert_eq!(parse_token(&[b'g'; 32]), None);
    }
}
