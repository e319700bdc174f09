/* Resizes the shorter side of an image to CLASSIFIER_SIZE and keeps the centre, to the same bits as Convoy's decoder:
 * a triangle filter in two passes, horizontal first, with weights of 22 bits and rounding to 8 bits between the passes.
 * No memory is allocated. Each row of the image is filtered up to twice, so that no second image is kept. */
#include "classifier.h"

#include <math.h>

enum { BITS = 22, SIZE = CLASSIFIER_SIZE, CROP = CLASSIFIER_CROP, FIRST = (CLASSIFIER_SIZE - CLASSIFIER_CROP) / 2 };

/* Where one side of the kept square starts and ends, in pixels of the image. */
typedef struct {
    float start, end;
} Span;

/* The pixels that one output pixel is made of. */
typedef struct {
    int first, count;
    double center, inverse, sum;
} Taps;

static Span kept(int side, int shorter)
{
    double resized = nearbyint(side / (shorter / (double)SIZE)), scale = side / resized;
    int first = ((int)resized - SIZE) / 2;
    double end = (first + SIZE) * scale;
    Span span = {(float)(first * scale), (float)(end < side ? end : side)};
    return span;
}

static double triangle(const Taps *taps, int index)
{
    double distance = fabs((index + taps->first - taps->center + 0.5) * taps->inverse);
    return distance < 1.0 ? 1.0 - distance : 0.0;
}

static Taps taps_of(Span span, int side, int output)
{
    double step = (double)(span.end - span.start) / SIZE, support = step < 1.0 ? 1.0 : step;
    Taps taps = {0, 0, span.start + (output + 0.5) * step, 1.0 / support, 0.0};
    int first = (int)(taps.center - support + 0.5), last = (int)(taps.center + support + 0.5);
    taps.first = first < 0 ? 0 : first;
    taps.count = (last > side ? side : last) - taps.first;
    for (int index = 0; index < taps.count; index++)
        taps.sum += triangle(&taps, index);
    return taps;
}

static int32_t weight(const Taps *taps, int index)
{
    return (int32_t)(0.5 + triangle(taps, index) / taps->sum * (1 << BITS));
}

static uint8_t rounded(int32_t sum)
{
    int32_t value = sum >> BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static void filter_row(const uint8_t *row, int width, Span across, uint8_t output[CROP][3])
{
    for (int x = 0; x < CROP; x++) {
        Taps taps = taps_of(across, width, FIRST + x);
        int32_t sums[3] = {1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1)};
        for (int index = 0; index < taps.count; index++) {
            int32_t share = weight(&taps, index);
            for (int channel = 0; channel < 3; channel++)
                sums[channel] += share * row[3 * (taps.first + index) + channel];
        }
        for (int channel = 0; channel < 3; channel++)
            output[x][channel] = rounded(sums[channel]);
    }
}

void classifier_preprocess(const uint8_t *rgb, int height, int width, uint8_t image[1][CROP][CROP][3])
{
    int shorter = height < width ? height : width;
    Span across = kept(width, shorter), down = kept(height, shorter);
    for (int y = 0; y < CROP; y++) {
        Taps taps = taps_of(down, height, FIRST + y);
        int32_t sums[CROP][3];
        for (int x = 0; x < CROP; x++)
            for (int channel = 0; channel < 3; channel++)
                sums[x][channel] = 1 << (BITS - 1);
        for (int index = 0; index < taps.count; index++) {
            uint8_t row[CROP][3];
            int32_t share = weight(&taps, index);
            filter_row(rgb + 3 * (long)width * (taps.first + index), width, across, row);
            for (int x = 0; x < CROP; x++)
                for (int channel = 0; channel < 3; channel++)
                    sums[x][channel] += share * row[x][channel];
        }
        for (int x = 0; x < CROP; x++)
            for (int channel = 0; channel < 3; channel++)
                image[0][y][x][channel] = rounded(sums[x][channel]);
    }
}
