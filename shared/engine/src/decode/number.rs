//! Whole numbers however JSON writes them: `-0`, `5.0` and `1e3` are as whole as `5`.

use super::shown;

/// So much of a number's text is shown.
const SHOWN: usize = 40;

/// The integer that a JSON number is, exactly; or why it is none of 64 bits.
pub(super) fn whole(text: &str) -> Result<i64, String> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (is_negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = || integer.bytes().chain(fraction.bytes());
    if digits().all(|digit| digit == b'0') {
        return Ok(0);
    }
    // The value is the digits, read as one integer, times ten to the power of `scale`.
    let exponent: i64 = exponent.parse().unwrap_or(if exponent.starts_with('-') { i64::MIN } else { i64::MAX });
    let scale = exponent.saturating_sub(fraction.len() as i64);
    let zeros = digits().rev().take_while(|digit| *digit == b'0').count() as i64;
    if scale.saturating_add(zeros) < 0 {
        return Err(format!("{} has a fraction", shown(text, SHOWN)));
    }
    let significant = digits().count() as i64 - zeros;
    let beyond = || format!("{} is beyond 64 bits", shown(text, SHOWN));
    let mut value = 0_i64;
    // Downwards, as there is one more integer below zero than above.
    for digit in digits().take(significant as usize) {
        let digit = i64::from(digit - b'0');
        value = value.checked_mul(10).and_then(|value| value.checked_sub(digit)).ok_or_else(beyond)?;
    }
    for _ in 0..scale.saturating_add(zeros) {
        value = value.checked_mul(10).ok_or_else(beyond)?;
    }
    if is_negative { Ok(value) } else { value.checked_neg().ok_or_else(beyond) }
}
