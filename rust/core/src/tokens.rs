//! The tokens of a request.

/// Prompt and output; the newest wait beside the list.
///
/// The lists of many requests lie on as many pages: a step that added to each would miss the
/// translation cache once per request. So a list is added to once in [`MOST_RECENT`] tokens, and
/// nothing else in a step looks at it.
#[derive(Debug)]
#[repr(C)] // counts first, to lie beside what a step looks at
pub(crate) struct Tokens {
    num_listed: u32,
    num_recent: u32,
    recent: [i32; MOST_RECENT],
    /// Here as well, so that nobody goes to the list for it.
    last: i32,
    list: Vec<i32>,
}

const MOST_RECENT: usize = 11;

impl Tokens {
    pub(crate) fn new(prompt: Vec<i32>) -> Self {
        let mut tokens = Self {
            num_listed: 0,
            num_recent: 0,
            recent: [0; MOST_RECENT],
            last: prompt.last().copied().unwrap_or_default(),
            list: prompt,
        };
        tokens.gather();
        tokens
    }

    pub(crate) fn len(&self) -> usize {
        (self.num_listed + self.num_recent) as usize
    }

    pub(crate) fn last(&self) -> Option<&i32> {
        (self.len() > 0).then_some(&self.last)
    }

    pub(crate) fn push(&mut self, token: i32) {
        if self.is_to_gather() {
            self.gather();
        }
        self.recent[self.num_recent as usize] = token;
        self.num_recent += 1;
        self.last = token;
    }

    /// All of them in one slice.
    pub(crate) fn all(&mut self) -> &[i32] {
        self.gather();
        &self.list
    }

    /// Has the list to be added to before the next token?
    pub(crate) fn is_to_gather(&self) -> bool {
        self.num_recent as usize == MOST_RECENT
    }

    #[inline(never)] // once in a few tokens
    pub(crate) fn gather(&mut self) {
        self.list.extend_from_slice(&self.recent[..self.num_recent as usize]);
        let num_listed = u32::try_from(self.list.len()).expect("lengths are checked to fit int32");
        (self.num_listed, self.num_recent) = (num_listed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Tokens;

    #[test]
    fn tokens_are_those_of_a_list_however_often_they_are_gathered() {
        for every in 1..20 {
            let mut list = vec![3, 1];
            let mut tokens = Tokens::new(list.clone());
            for token in 0..100 {
                assert_eq!((tokens.len(), tokens.last()), (list.len(), list.last()));
                tokens.push(token);
                list.push(token);
                if token % every == 0 {
                    assert_eq!(tokens.all(), list);
                }
            }
            assert_eq!(tokens.all(), list);
        }
        assert_eq!(Tokens::new(vec![]).last(), None);
    }
}
