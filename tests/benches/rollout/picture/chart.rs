//! What stands in a panel: lines with their axes and names, or numbers.

use std::fmt::Write as _;

use super::{
    Span,
    panel::{Series, Unit},
    svg::{COLOURS, Canvas, Frame, QUIET},
};

/// Lines that are named below a chart; the others are counted.
const NAMES: usize = 7;
/// Room for the values at the left of a chart, and for times and names below it.
const LEFT: f64 = 62.0;
const BELOW: f64 = 46.0;
/// And for one time.
const TIME: f64 = 48.0;
/// Two points that are farther apart than so many times the usual are not joined.
const HOLE: f64 = 1.5;

/// Numbers side by side, each with its name.
pub(super) fn numbers(canvas: &mut Canvas<'_>, frame: Frame, unit: Unit, series: &[Series]) {
    let count = series.len().max(1);
    for (place, line) in (0_u32..).zip(series) {
        let x =
            frame.x + frame.width * (f64::from(place) + 0.5) / f64::from(u32::try_from(count).unwrap_or(1));
        let value = line.last().map_or_else(|| "-".to_owned(), |value| unit.write(value));
        let y = frame.y + frame.height * 0.66;
        canvas.label(x, y, &value, "fill=\"#73bf69\" font-size=\"30\" text-anchor=\"middle\"");
        let name = format!("fill=\"{QUIET}\" text-anchor=\"middle\"");
        canvas.label(x, y + 20.0, line.name.trim(), &name);
    }
}

/// Lines over the time.
pub(super) fn lines(canvas: &mut Canvas<'_>, frame: Frame, unit: Unit, series: &[Series], span: &Span) {
    let plot = Frame {
        x: frame.x + LEFT,
        y: frame.y + 28.0,
        width: frame.width - LEFT - 12.0,
        height: frame.height - 28.0 - BELOW,
    };
    let values = series.iter().flat_map(|line| &line.points).map(|point| point.1);
    let highest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    let (step, steps) = scale(highest);
    let top = step * f64::from(steps);
    for tick in 0..=steps {
        let value = step * f64::from(tick);
        let y = plot.y + plot.height * (1.0 - value / top);
        let (from, to) = (plot.x, plot.x + plot.width);
        canvas.put(&format!("<path d=\"M{from:.0} {y:.1}H{to:.0}\" stroke=\"#2c3235\"/>"));
        let how = format!("fill=\"{QUIET}\" text-anchor=\"end\"");
        canvas.label(plot.x - 6.0, y + 4.0, &unit.write(value), &how);
    }
    let across = |at: f64| plot.x + plot.width * (at - span.begin) / (span.end - span.begin);
    let each =
        [1.0, 2.0, 5.0].into_iter().find(|minutes| across(span.begin + minutes * 60.0) - plot.x >= TIME);
    let (mut minute, each) = (0.0, each.unwrap_or(10.0));
    while span.begin + minute * 60.0 < span.end {
        let how = format!("fill=\"{QUIET}\" text-anchor=\"middle\"");
        let y = plot.y + plot.height + 15.0;
        canvas.label(across(span.begin + minute * 60.0), y, &format!("{minute:.0} min"), &how);
        minute += each;
    }
    for (number, mark) in (1..).zip(&span.marks) {
        let (x, end) = (across(mark.at), plot.y + plot.height);
        let y = plot.y;
        canvas.put(&format!(
            "<path d=\"M{x:.1} {y:.0}V{end:.0}\" stroke=\"#5794f2\" stroke-dasharray=\"3 3\" opacity=\"0.7\"/>"
        ));
        canvas.label(x + 2.0, y + 8.0, &format!("{number}"), "fill=\"#8ab8ff\" font-size=\"9\"");
    }
    for (line, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let path = path(line, |at, value| (across(at), plot.y + plot.height * (1.0 - value / top)));
        canvas.put(&format!("<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"));
    }
    legend(canvas, frame, series);
}

/// The line through the points, with holes where there are none.
fn path(line: &Series, place: impl Fn(f64, f64) -> (f64, f64)) -> String {
    let mut path = String::new();
    let usual = line.points.windows(2).map(|pair| pair[1].0 - pair[0].0).fold(f64::INFINITY, f64::min);
    let mut before = f64::NEG_INFINITY;
    for &(at, value) in line.points.iter().filter(|point| point.1.is_finite()) {
        let (x, y) = place(at, value);
        let joined = at - before <= usual * HOLE;
        let _ = write!(path, "{}{x:.1} {y:.1}", if joined { 'L' } else { 'M' });
        before = at;
    }
    path
}

/// A step of 1, 2 or 5 times a power of ten, and how many of them reach to the highest value.
fn scale(highest: f64) -> (f64, u32) {
    if highest <= 0.0 {
        return (1.0, 1);
    }
    let rough = highest / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let steps = (1..=4).find(|steps| step * f64::from(*steps) >= highest).unwrap_or(4);
    (step, steps)
}

/// The lines' names, as many as there is room for.
fn legend(canvas: &mut Canvas<'_>, frame: Frame, series: &[Series]) {
    let (mut x, y) = (frame.x + 10.0, frame.y + frame.height - 9.0);
    for (place, (line, colour)) in series.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let name = line.name.trim();
        let width = f64::from(u32::try_from(name.chars().count()).unwrap_or(0)) * 6.2 + 26.0;
        if place == NAMES || x + width > frame.x + frame.width {
            let more = format!("+ {}", series.len() - place);
            return canvas.label(x, y, &more, &format!("fill=\"{QUIET}\""));
        }
        if name.is_empty() {
            continue;
        }
        canvas.put(&format!(
            "<rect x=\"{x:.0}\" y=\"{:.0}\" width=\"10\" height=\"3\" fill=\"{colour}\"/>",
            y - 4.0
        ));
        canvas.label(x + 14.0, y, name, &format!("fill=\"{QUIET}\""));
        x += width;
    }
}
