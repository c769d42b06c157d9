//! Figures as people read them.

/// Three digits that count, or all before the point.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 99.95 => {
            let decimals = (2.0 - size.log10().floor()).clamp(1.0, 6.0);
            format!("{value:.0$}", decimals as usize)
        }
        _ => grouped(value),
    }
}

/// 1,234,567
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (value, text) in [
            (0.0, "0"),
            (0.027_86, "0.0279"),
            (0.4, "0.400"),
            (9.994, "9.99"),
            (12.34, "12.3"),
            (99.96, "100"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
