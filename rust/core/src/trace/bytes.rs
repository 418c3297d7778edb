//! Numbers to bytes and back, with a running check.

/// Bytes of a trace being written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// Where the present record begins.
    begin: usize,
    check: u64,
}

impl Writer {
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.begin = self.bytes.len();
    }

    pub(super) fn begin(&mut self, tag: u8) {
        self.begin = self.bytes.len();
        self.bytes.push(tag);
    }

    /// The present record is whole.
    pub(super) fn end(&mut self) {
        self.check = mix(self.check, &self.bytes[self.begin..]);
        self.bytes.extend_from_slice(&short(self.check).to_le_bytes());
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        self.begin = 0;
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.bytes.push(number.to_le_bytes()[0]);
    }

    pub(super) fn count(&mut self, count: usize) {
        self.number(count as u64);
    }

    /// Of any size, as a caller may write it.
    pub(super) fn whole(&mut self, number: i128) {
        let mut zigzag = u128::from_le_bytes(((number << 1) ^ (number >> 127)).to_le_bytes());
        while zigzag >= 0x80 {
            self.bytes.push(zigzag.to_le_bytes()[0] | 0x80);
            zigzag >>= 7;
        }
        self.bytes.push(zigzag.to_le_bytes()[0]);
    }

    pub(super) fn tokens(&mut self, tokens: &[i32]) {
        self.count(tokens.len());
        let begin = self.bytes.len();
        self.bytes.resize(begin + 4 * tokens.len(), 0);
        for (place, token) in self.bytes[begin..].chunks_exact_mut(4).zip(tokens) {
            place.copy_from_slice(&token.to_le_bytes());
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub(super) fn check(&mut self, check: u32) {
        self.bytes.extend_from_slice(&check.to_le_bytes());
    }
}

/// Why a number could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The bytes are over.
    Ended,
    /// They mean nothing.
    Nonsense(&'static str),
}

pub(super) type Read<T> = Result<T, Unreadable>;

/// Bytes of a trace being read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    begin: usize,
    check: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, begin: at, check: 0 }
    }

    /// Tag of the next record; None behind the last.
    pub(super) fn begin(&mut self) -> Option<u8> {
        self.begin = self.at;
        let tag = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(tag)
    }

    pub(super) fn end(&mut self) -> Read<()> {
        self.check = mix(self.check, &self.bytes[self.begin..self.at]);
        if self.check()? == short(self.check) {
            Ok(())
        } else {
            Err(Unreadable::Nonsense("its check is wrong"))
        }
    }

    fn slice(&mut self, len: usize) -> Read<&'a [u8]> {
        let slice = self.bytes.get(self.at..).and_then(|rest| rest.get(..len));
        self.at += slice.map_or(0, <[u8]>::len);
        slice.ok_or(Unreadable::Ended)
    }

    fn bits(&mut self, most: u32) -> Read<u128> {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.slice(1)?[0];
            let part = u128::from(byte & 0x7f);
            if shift >= most || (part << shift) >> shift != part {
                return Err(Unreadable::Nonsense("a number is too large"));
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
        }
    }

    pub(super) fn number(&mut self) -> Read<u64> {
        u64::try_from(self.bits(64)?).map_err(|_| Unreadable::Nonsense("a number is too large"))
    }

    pub(super) fn size(&mut self) -> Read<usize> {
        usize::try_from(self.number()?).map_err(|_| Unreadable::Nonsense("a size is too large"))
    }

    /// Of a list whose entries have at least one byte each.
    pub(super) fn count(&mut self) -> Read<usize> {
        let count = self.size()?;
        if count > self.bytes.len() - self.at { Err(Unreadable::Ended) } else { Ok(count) }
    }

    pub(super) fn whole(&mut self) -> Read<i128> {
        let zigzag = self.bits(128)?;
        let half = i128::from_le_bytes((zigzag >> 1).to_le_bytes());
        Ok(if zigzag & 1 == 0 { half } else { !half })
    }

    pub(super) fn tokens(&mut self) -> Read<Vec<i32>> {
        let count = self.count()?;
        let token = |bytes: &[u8]| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(self.slice(4 * count)?.chunks_exact(4).map(token).collect())
    }

    pub(super) fn text(&mut self) -> Read<&'a str> {
        let len = self.count()?;
        std::str::from_utf8(self.slice(len)?)
            .map_err(|_| Unreadable::Nonsense("a text is no UTF-8"))
    }

    pub(super) fn check(&mut self) -> Read<u32> {
        let bytes = self.slice(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

fn bits_of(int: i32) -> u32 {
    u32::from_le_bytes(int.to_le_bytes())
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) fn step(lane: u64, word: u64) -> u64 {
    (lane ^ word).wrapping_mul(MULTIPLIER).rotate_left(29)
}

/// A check of bytes behind others: finds damage, stops no forger.
pub(super) fn mix(check: u64, bytes: &[u8]) -> u64 {
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    };
    let mut lanes = [check, 1, 2, 3];
    let mut fours = bytes.chunks_exact(32);
    for four in &mut fours {
        for (lane, eight) in lanes.iter_mut().zip(four.chunks_exact(8)) {
            *lane = step(*lane, word(eight));
        }
    }
    let end = fours.remainder().chunks(8).map(word).fold(bytes.len() as u64, step);
    lanes.into_iter().fold(end, step)
}

/// The same of numbers.
pub(super) fn mix_words(check: u64, words: impl ExactSizeIterator<Item = u64>) -> u64 {
    let mut lanes = [step(check, words.len() as u64), 1, 2, 3];
    for (place, word) in words.enumerate() {
        lanes[place % 4] = step(lanes[place % 4], word);
    }
    lanes.into_iter().fold(check, step)
}

fn pair(low: i32, high: i32) -> u64 {
    u64::from(bits_of(low)) | u64::from(bits_of(high)) << 32
}

/// The same of the int32s before the first zero.
pub(super) fn mix_until_zero(check: u64, ints: &[i32]) -> u64 {
    let mut check = check;
    let mut twos = ints.chunks_exact(2);
    for two in &mut twos {
        if two[0] == 0 {
            return step(check, 1);
        }
        check = step(check, pair(two[0], two[1]));
        if two[1] == 0 {
            return step(check, 2);
        }
    }
    match twos.remainder() {
        &[last] if last != 0 => step(step(check, pair(last, 0)), 2),
        _ => step(check, 1),
    }
}

/// The same of the int32s of an array, in four lanes, for arrays are long.
pub(super) fn mix_ints(check: u64, ints: &[i32]) -> u64 {
    let mut lanes = [check, 1, 2, 3];
    let mut chunks = ints.chunks_exact(8);
    for chunk in &mut chunks {
        for (lane, two) in lanes.iter_mut().zip(chunk.chunks_exact(2)) {
            *lane = step(*lane, pair(two[0], two[1]));
        }
    }
    let end =
        chunks.remainder().iter().fold(ints.len() as u64, |lane, &int| step(lane, pair(int, 0)));
    lanes.into_iter().fold(end, step)
}

pub(super) fn short(check: u64) -> u32 {
    let mixed = (check ^ check >> 32).wrapping_mul(MULTIPLIER);
    let [.., a, b, c, d] = mixed.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::{Reader, Unreadable, Writer, mix, mix_ints, mix_until_zero, mix_words};

    #[test]
    fn numbers_of_every_size_come_back() {
        let wholes = [0, -1, 1, 63, -64, 64, i128::from(i64::MAX), i128::MAX, i128::MIN];
        let numbers = [0, 1, 127, 128, 1 << 35, u64::MAX];
        let tokens = [0, -1, 7, i32::MAX, i32::MIN];
        let mut writer = Writer::default();
        writer.begin(9);
        for whole in wholes {
            writer.whole(whole);
        }
        for number in numbers {
            writer.number(number);
        }
        writer.tokens(&tokens);
        writer.text("salt é");
        writer.end();
        let bytes = writer.take();
        let mut reader = Reader::new(&bytes, 0);
        assert_eq!(reader.begin(), Some(9));
        assert!(wholes.iter().all(|&n| reader.whole() == Ok(n)));
        assert!(numbers.iter().all(|&n| reader.number() == Ok(n)));
        assert_eq!(reader.tokens(), Ok(tokens.to_vec()));
        assert_eq!(reader.text(), Ok("salt é"));
        assert_eq!((reader.end(), reader.begin()), (Ok(()), None));
    }

    #[test]
    fn numbers_that_do_not_end_or_are_too_large_are_refused() {
        assert_eq!(Reader::new(&[0x80; 4], 0).number(), Err(Unreadable::Ended));
        assert!(matches!(Reader::new(&[0xff; 40], 0).whole(), Err(Unreadable::Nonsense(_))));
        assert!(matches!(Reader::new(&[0xff; 40], 0).number(), Err(Unreadable::Nonsense(_))));
        assert_eq!(Reader::new(&[0x7f, 1], 0).tokens(), Err(Unreadable::Ended));
    }

    fn words(ints: &[i32]) -> impl ExactSizeIterator<Item = u64> {
        ints.iter().map(|&int| u64::try_from(int).expect("small"))
    }

    #[test]
    fn a_check_depends_on_every_byte_and_their_number() {
        let bytes: Vec<u8> = (0..100).collect();
        let ints: Vec<i32> = (0..100).collect();
        for place in 0..100 {
            let (mut other, mut others) = (bytes.clone(), ints.clone());
            other[place] ^= 1;
            others[place] ^= 1;
            assert_ne!(mix(0, &other), mix(0, &bytes));
            assert_ne!(mix_ints(0, &others), mix_ints(0, &ints));
            assert_ne!(mix_words(0, words(&others)), mix_words(0, words(&ints)));
            if place > 0 {
                assert_ne!(mix_until_zero(0, &others[1..]), mix_until_zero(0, &ints[1..]));
                assert_ne!(mix_until_zero(0, &ints[1..place]), mix_until_zero(0, &ints[1..]));
                others[place] = 0; // whatever is behind the end of a row does not count
                let (long, short) = (&others[1..], &others[1..place]);
                assert_eq!(mix_until_zero(0, long), mix_until_zero(0, &[short, &[0, 0]].concat()));
            }
            assert_ne!(mix(0, &bytes[..place]), mix(0, &bytes));
            assert_ne!(mix_ints(0, &ints[..place]), mix_ints(0, &ints));
        }
        assert_ne!(mix(0, &[0; 8]), mix(0, &[0; 16]));
    }
}
