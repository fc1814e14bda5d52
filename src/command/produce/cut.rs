//! Input, cut into pieces of whole lines. Where they are cut depends on the input alone, not on how it arrives, unless what there
//! is so far is taken early.

/// A piece ends with the line that takes it to this many bytes.
const PIECE_BYTES: usize = 4 << 20;

/// A longer line is passed over. The server takes shorter ones than that, and says so of them itself.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Some consecutive lines. One that was passed over is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The number of the first, from 1.
    pub first_line: u64,
    /// How many they are.
    pub lines: u64,
    /// Their text.
    pub text: Vec<u8>,
    /// How many bytes of the input they were.
    pub bytes: u64,
    /// The numbers of those that were too long, with their lengths.
    pub too_long: Vec<(u64, u64)>,
}

impl Piece {
    /// Cuts it in two after about half of its lines' bytes; none if it is one line.
    pub fn halves(self) -> Result<[Self; 2], Self> {
        let middle = self.text.len() / 2;
        let inner = &self.text[..self.text.len().saturating_sub(1)];
        let before = inner[..middle.min(inner.len())].iter().rposition(|&byte| byte == b'\n');
        let Some(at) = before.or_else(|| inner.iter().position(|&byte| byte == b'\n')) else { return Err(self) };
        let (first, second) = self.text.split_at(at + 1);
        let lines = first.iter().filter(|&&byte| byte == b'\n').count() as u64;
        let of = |first_line, lines, text: &[u8]| Self { first_line, lines, text: text.to_vec(), ..Self::default() };
        Ok([of(self.first_line, lines, first), of(self.first_line + lines, self.lines - lines, second)])
    }
}

/// Cuts input into pieces.
#[derive(Debug)]
pub struct Cutter {
    piece: Piece,
    /// The line that has yet to end.
    line: Vec<u8>,
    /// How long it is so far.
    line_bytes: u64,
}

impl Default for Cutter {
    fn default() -> Self {
        Self { piece: Piece { first_line: 1, ..Piece::default() }, line: Vec::new(), line_bytes: 0 }
    }
}

impl Cutter {
    /// Takes in some of the input, and gives the pieces that it completes.
    pub fn push(&mut self, mut input: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while !input.is_empty() {
            let newline = input.iter().position(|&byte| byte == b'\n');
            let (part, rest) = input.split_at(newline.map_or(input.len(), |at| at + 1));
            input = rest;
            self.line_bytes += part.len() as u64;
            if self.line_bytes <= MAX_LINE_BYTES as u64 {
                self.line.extend_from_slice(part);
            }
            if newline.is_some() {
                self.end_line(1);
                if self.piece.text.len() >= PIECE_BYTES {
                    pieces.extend(self.take());
                }
            }
        }
        pieces
    }

    /// The whole lines that there are so far, if any.
    pub fn take(&mut self) -> Option<Piece> {
        if self.piece.lines == 0 {
            return None;
        }
        let next = Piece { first_line: self.piece.first_line + self.piece.lines, ..Piece::default() };
        Some(std::mem::replace(&mut self.piece, next))
    }

    /// What is left at the end of the input, where the last line need not end.
    pub fn finish(mut self) -> Option<Piece> {
        if self.line_bytes > 0 {
            self.end_line(0);
        }
        self.take()
    }

    /// Ends the line with so many bytes of a line's end.
    fn end_line(&mut self, end: u64) {
        if self.line_bytes > MAX_LINE_BYTES as u64 {
            self.piece.too_long.push((self.piece.first_line + self.piece.lines, self.line_bytes - end));
            self.line = b"\n".to_vec();
        }
        self.piece.text.append(&mut self.line);
        self.piece.bytes += self.line_bytes;
        self.piece.lines += 1;
        self.line_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(input: &[u8], chunk: usize) -> Vec<Piece> {
        let mut cutter = Cutter::default();
        let mut pieces: Vec<Piece> = input.chunks(chunk).flat_map(|chunk| cutter.push(chunk)).collect();
        pieces.extend(cutter.finish());
        pieces
    }

    #[test]
    fn pieces_are_whole_lines_wherever_the_input_is_torn() {
        let line = |i: usize| format!("{i}{}\n", "x".repeat(i * 7_919 % 300_000));
        let input: String = (0..200).map(line).collect();
        let pieces = cut(input.trim_end().as_bytes(), 64 << 10);
        assert!(pieces.len() > 3);
        assert!(pieces[..pieces.len() - 1].iter().all(|p| p.text.len() >= PIECE_BYTES && p.text.ends_with(b"\n")));
        assert_eq!(pieces.iter().flat_map(|piece| piece.text.clone()).collect::<Vec<_>>(), input.trim_end().as_bytes());
        let mut next = 1;
        for piece in &pieces {
            assert_eq!(piece.first_line, next);
            next += piece.lines;
        }
        assert_eq!(next, 201);
        for chunk in [1_000, 4_097, 1 << 30] {
            assert_eq!(cut(input.trim_end().as_bytes(), chunk), pieces, "{chunk}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_the_numbers_go_on() {
        let input = [b"a\n".as_slice(), &vec![b'x'; MAX_LINE_BYTES + 1], b"\nb\n", &vec![b'y'; 5 << 20]].concat();
        for chunk in [4_096, 1 << 30] {
            let pieces = cut(&input, chunk);
            let texts: Vec<&[u8]> = pieces.iter().map(|piece| &piece.text[..]).collect();
            assert_eq!(texts, [b"a\n\nb\n\n"]);
            assert_eq!(pieces[0].too_long, [(2, (4 << 20) + 1), (4, 5 << 20)]);
            assert_eq!((pieces[0].lines, pieces[0].bytes), (4, input.len() as u64));
        }
    }

    #[test]
    fn what_there_is_so_far_is_whole_lines() {
        let mut cutter = Cutter::default();
        assert!(cutter.push(b"a\nb").is_empty());
        assert_eq!(cutter.take().expect("a line").text, b"a\n");
        assert_eq!(cutter.take(), None);
        assert!(cutter.push(b"\nc").is_empty());
        let piece = cutter.take().expect("a line");
        assert_eq!((piece.text.as_slice(), piece.first_line), (b"b\n".as_slice(), 2));
        assert_eq!(cutter.finish().expect("the rest").text, b"c");
    }

    proptest! {
        #[test]
        fn halves_are_lines_that_make_the_whole(text in "[a\n]{1,40}", first_line in 1_u64..100) {
            let lines = text[..text.len() - 1].matches('\n').count() as u64 + 1;
            let piece = || Piece { first_line, lines, text: text.clone().into_bytes(), ..Piece::default() };
            match piece().halves() {
                Ok([first, second]) => {
                    prop_assert!(first.text.ends_with(b"\n") && !second.text.is_empty());
                    prop_assert_eq!([first.text, second.text].concat(), text.into_bytes());
                    prop_assert_eq!(first.lines + second.lines, lines);
                    prop_assert_eq!(second.first_line, first_line + first.lines);
                }
                Err(whole) => prop_assert_eq!(whole.lines, 1),
            }
        }
    }
}
