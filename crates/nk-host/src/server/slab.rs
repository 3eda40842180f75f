//! Tokens for epoll: an index and a generation, so that an event for something closed meanwhile finds nothing.

/// Names an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    pub(crate) fn word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
    pub(crate) fn from_word(w: u64) -> Token {
        Token { index: w as u32, generation: (w >> 32) as u32 }
    }
}

/// Entries by token.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new() }
    }
    pub(crate) fn insert(&mut self, value: T) -> Token {
        if let Some(index) = self.free.pop()
            && let Some((generation, slot)) = self.entries.get_mut(index as usize)
        {
            *slot = Some(value);
            return Token { index, generation: *generation };
        }
        self.entries.push((1, Some(value)));
        Token { index: self.entries.len() as u32 - 1, generation: 1 }
    }
    pub(crate) fn get(&self, token: Token) -> Option<&T> {
        let (generation, value) = self.entries.get(token.index as usize)?;
        value.as_ref().filter(|_| *generation == token.generation)
    }
    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let (generation, value) = self.entries.get_mut(token.index as usize)?;
        value.as_mut().filter(|_| *generation == token.generation)
    }
    pub(crate) fn remove(&mut self, token: Token) -> Option<T> {
        let (generation, value) = self.entries.get_mut(token.index as usize)?;
        if *generation != token.generation {
            return None;
        }
        let v = value.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(token.index);
        Some(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_past_entry_finds_nothing() {
        let mut s = Slab::new();
        let a = s.insert("a");
        assert_eq!(Token::from_word(a.word()), a);
        assert_eq!(s.remove(a), Some("a"));
        let b = s.insert("b");
        assert_eq!((s.get(a), s.get(b)), (None, Some(&"b")));
        assert_eq!(s.remove(a), None);
        assert_eq!(s.get_mut(b), Some(&mut "b"));
    }
}
