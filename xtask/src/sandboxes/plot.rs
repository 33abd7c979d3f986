//! The plot: for each program, how long a run takes alone; and how many there are in a second, by clients.
//! Both axes of values are logarithmic, because the slowest take a thousand times as long as the fastest.

use std::fmt::Write;

use super::samples::Samples;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 40.0;
const ROW: f64 = 24.0;
const LINES_HEIGHT: f64 = 300.0;

const OURS: &str = "Sandglass";
const OUR_COLOUR: &str = "#c2410c";
const COLOURS: [&str; 8] =
    ["#64748b", "#0f766e", "#2563eb", "#7c3aed", "#be185d", "#4d7c0f", "#0891b2", "#a16207"];

pub(super) fn svg(samples: &Samples) -> String {
    let mut body = String::new();
    let mut top = 16.0;
    for (program, what) in &samples.programs {
        top = bars(&mut body, samples, program, what, top);
    }
    if let Some((program, _)) = samples.programs.first() {
        top = lines(&mut body, samples, program, top);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top:.0}\" width=\"{WIDTH}\" \
         height=\"{top:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// A logarithmic axis that begins and ends at a power of ten.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    low: i32,
    high: i32,
    from: f64,
    to: f64,
}

impl Axis {
    /// Holds all the values, none of which is 0 or less.
    fn over(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Self {
        let positive = values.into_iter().filter(|value| *value > 0.0);
        let (low, high) =
            positive.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return Self { low: 0, high: 1, from, to };
        }
        let (low, high) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        Self { low, high: high.max(low + 1), from, to }
    }

    fn place(self, value: f64) -> f64 {
        let share = (value.max(1e-9).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| 10f64.powi(power))
    }
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, style: &str, said: &str) {
    let said = said.replace('&', "&amp;").replace('<', "&lt;").replace('`', "");
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{said}</text>");
}

fn line(body: &mut String, [x1, y1, x2, y2]: [f64; 4], colour: &str, width: f64) {
    let _ = writeln!(
        body,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
    );
}

fn colour(samples: &Samples, subject: &str) -> &'static str {
    if subject == OURS {
        return OUR_COLOUR;
    }
    let place = samples.subjects.iter().position(|(name, _)| name == subject).unwrap_or_default();
    COLOURS[place % COLOURS.len()]
}

/// A bar to the median, and from there a thin line to the 99th of a hundred.
fn bars(body: &mut String, samples: &Samples, program: &str, what: &str, top: f64) -> f64 {
    let rows: Vec<_> = samples
        .subjects
        .iter()
        .filter_map(|(subject, _)| Some((subject, samples.paced(subject, program)?)))
        .map(|(subject, merged)| (subject, merged.percentile(50), merged.percentile(99)))
        .collect();
    let axis = Axis::over(rows.iter().flat_map(|row| [row.1, row.2]), LEFT, WIDTH - RIGHT - 60.0);
    text(body, 12.0, top + 12.0, "start", "font-weight=\"bold\"", &format!("{program}: {what}"));
    let (first, bottom) = (top + 24.0, top + 24.0 + ROW * rows.len() as f64);
    for tick in axis.ticks() {
        let x = axis.place(tick);
        line(body, [x, first, x, bottom], "#e2e8f0", 1.0);
        text(body, x, bottom + 14.0, "middle", "fill=\"#64748b\"", &format!("{tick} ms"));
    }
    for (place, (subject, p50, p99)) in rows.into_iter().enumerate() {
        let y = first + ROW * place as f64;
        let (middle, end) = (axis.place(p50), axis.place(p99));
        let colour = colour(samples, subject);
        text(body, LEFT - 8.0, y + 16.0, "end", "", subject);
        let _ = writeln!(
            body,
            "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            y + 5.0,
            (middle - LEFT).max(1.0),
            ROW - 10.0
        );
        line(body, [middle, y + ROW / 2.0, end, y + ROW / 2.0], colour, 1.5);
        line(body, [end, y + 8.0, end, y + ROW - 8.0], colour, 1.5);
        let said = if p50 < 10.0 { format!("{p50:.2}") } else { format!("{p50:.0}") };
        text(body, end + 6.0, y + 16.0, "start", "fill=\"#334155\"", &said);
    }
    text(body, WIDTH - 12.0, top + 12.0, "end", "fill=\"#64748b\"", "bar: p50, whisker: p99");
    bottom + 36.0
}

fn lines(body: &mut String, samples: &Samples, program: &str, top: f64) -> f64 {
    let counts = samples.client_counts(program);
    let mut found = Vec::new();
    for (subject, _) in &samples.subjects {
        let points: Vec<_> = counts
            .iter()
            .enumerate()
            .filter_map(|(place, count)| Some((place, samples.rate(subject, program, *count)?)))
            .collect();
        if !points.is_empty() {
            found.push((subject, points));
        }
    }
    text(
        body,
        12.0,
        top + 12.0,
        "start",
        "font-weight=\"bold\"",
        &format!("{program}: runs a second, by clients"),
    );
    let (first, bottom) = (top + 28.0, top + 28.0 + LINES_HEIGHT);
    let rates = found.iter().flat_map(|(_, points)| points.iter().map(|point| point.1));
    let axis = Axis::over(rates, bottom, first);
    let x = |place: usize| {
        LEFT + (WIDTH - LEFT - RIGHT - 90.0) * place as f64 / counts.len().max(2).saturating_sub(1) as f64
    };
    for tick in axis.ticks() {
        let y = axis.place(tick);
        line(body, [LEFT, y, WIDTH - RIGHT - 90.0, y], "#e2e8f0", 1.0);
        text(body, LEFT - 8.0, y + 4.0, "end", "fill=\"#64748b\"", &tick.to_string());
    }
    for (place, count) in counts.iter().enumerate() {
        text(body, x(place), bottom + 16.0, "middle", "fill=\"#64748b\"", &count.to_string());
    }
    let mut named = Vec::new();
    for (subject, points) in found {
        let (colour, width) = (colour(samples, subject), if subject == OURS { 3.0 } else { 1.5 });
        let path: Vec<_> =
            points.iter().map(|(place, rate)| format!("{:.1},{:.1}", x(*place), axis.place(*rate))).collect();
        let _ = writeln!(
            body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            path.join(" ")
        );
        if let Some((place, rate)) = points.last() {
            named.push((axis.place(*rate), x(*place), subject, colour));
        }
    }
    named.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut lowest = f64::MIN;
    for (y, x, subject, colour) in named {
        // Names of lines that meet stand below each other.
        lowest = y.max(lowest + 13.0);
        text(body, x + 8.0, lowest + 4.0, "start", &format!("fill=\"{colour}\""), subject);
    }
    bottom + 36.0
}

#[cfg(test)]
mod tests {
    use super::super::samples::tests::some;
    use super::*;

    #[test]
    fn an_axis_holds_what_it_is_for() {
        let axis = Axis::over([0.5, 300.0], 0.0, 400.0);
        assert_eq!((axis.low, axis.high), (-1, 3));
        assert_eq!(
            [0.1, 1.0, 10.0, 1000.0].map(|value| axis.place(value).round()),
            [0.0, 100.0, 200.0, 400.0]
        );
        assert_eq!(axis.ticks().count(), 5);
        assert_eq!(axis.place(0.0), 0.0, "what is off the axis is at its end");
        assert_eq!(Axis::over([], 0.0, 1.0).high, 1);
        assert_eq!(Axis::over([1.0], 0.0, 1.0).high, 1);
    }

    #[test]
    fn everybody_who_was_measured_is_drawn() {
        let drawing = svg(&some());
        for subject in ["floor A", "floor B", "Sandglass", "go-judge", "docker"] {
            // Beside its bar and at the end of its line.
            assert_eq!(drawing.matches(&format!(">{subject}<")).count(), 2, "{subject}");
        }
        assert_eq!(drawing.matches("<polyline").count(), 5);
        assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n"));
        assert!(!drawing.contains("NaN") && !drawing.contains("inf"));
    }
}
