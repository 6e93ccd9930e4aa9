//! FORMAT.md as data: its tables of fields, its constants, its lines of bytes; and a file as such lines.

use std::collections::BTreeMap;

/// The text.
pub(crate) const FORMAT: &str = include_str!("../../FORMAT.md");

/// Where a field lies in its structure, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

/// A structure: its size, and its fields in order.
pub(crate) struct Structure {
    pub(crate) size: usize,
    pub(crate) fields: Vec<(String, Field)>,
}

/// The cells of a table's rows below a heading, header and ruler left out; all tables up to the next heading.
pub(crate) fn section_tables(heading: &str) -> Vec<Vec<String>> {
    let mut lines = FORMAT.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "FORMAT.md has no heading {heading:?}");
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with('#')).collect();
    let is_ruler = |line: &str| line.starts_with("| ---");
    lines
        .iter()
        .enumerate()
        .filter(|(index, line)| {
            let before_ruler = lines.get(index + 1).is_some_and(|next| is_ruler(next));
            line.starts_with('|') && !is_ruler(line) && !before_ruler
        })
        .map(|(_, line)| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// Every structure, from headings such as `### Node (4096 bytes)`. A repeated entry's table stands for its block.
pub(crate) fn structures() -> BTreeMap<String, Structure> {
    FORMAT
        .lines()
        .filter_map(|line| {
            let (name, size) = line.strip_prefix("### ")?.strip_suffix(" bytes)")?.split_once(" (")?;
            let rows = section_tables(line).into_iter().filter(|row| row.len() == 5 && row[0].parse::<usize>().is_ok());
            // Only the table of fields has a number in both of its first two columns.
            let fields: Vec<(String, Field)> = rows
                .filter_map(|row| {
                    let (offset, size) = (row[0].parse().ok()?, row[1].parse().ok()?);
                    Some((row[3].clone(), Field { offset, size }))
                })
                .collect();
            // A leaf of bits has no fields.
            let size = if name == "Deferred block" { 40 } else { size.parse().ok()? };
            (!fields.is_empty()).then(|| (name.to_owned(), Structure { size, fields }))
        })
        .collect()
}

/// The lines of bytes: the line, the offset in the file, the bytes.
pub(crate) fn hex_lines() -> Vec<(&'static str, usize, Vec<u8>)> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in FORMAT.lines() {
        if line.starts_with("```") {
            inside = line == "```hex";
        } else if inside {
            let (offset, rest) = line.split_once("  ").unwrap_or_else(|| panic!("{line}"));
            let digits = rest.get(..48).unwrap_or(rest);
            let bytes = digits.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
            let bytes = bytes.collect::<Result<Vec<_>, _>>().unwrap_or_else(|error| panic!("{line}: {error}"));
            found.push((line, usize::from_str_radix(offset, 16).unwrap(), bytes));
        }
    }
    found
}

/// A file as `small::golden_store` reads it. The last line is kept whatever it holds, and so is the file's length.
pub(crate) fn golden_text(file: &[u8]) -> String {
    let last = file.len() / 16 - 1;
    let lines =
        file.chunks(16).enumerate().filter(|(index, bytes)| *index == last || bytes.iter().any(|byte| *byte != 0));
    lines
        .map(|(index, bytes)| {
            let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{:08x}  {}\n", 16 * index, bytes.join(" "))
        })
        .collect()
}
