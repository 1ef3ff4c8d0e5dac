//go:build race

package recorder

const raceDetector = true
