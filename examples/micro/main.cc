// Classifies images with a ResNet-8 on TFLite Micro: 32 x 32 x 3 raw bytes in, a name out.
// model.h and model.cc come from keras-resnet; README.md says how.

#include <cstdint>
#include <cstdio>

#include "model.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

// TFLite Micro's classes live in tflite or, since 2026, in tflite::micro.
namespace tflite::micro {}
using namespace tflite;
using namespace tflite::micro;

alignas(16) static std::uint8_t arena[model::kArenaSize];

// One image, row by row, every pixel R, G, B. Put the camera of your board here.
static bool ReadImage(std::uint8_t* pixels) {
  return std::fread(pixels, 1, model::kInputSize, stdin) == model::kInputSize;
}

int main() {
  MicroMutableOpResolver<model::kOperators> operators;
  if (!model::AddOperators(operators)) return 1;
  MicroInterpreter interpreter(GetModel(g_model), operators, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) return 2;

  static std::uint8_t pixels[model::kInputSize];
  while (ReadImage(pixels)) {
    std::int8_t* input = interpreter.input(0)->data.int8;
    for (int i = 0; i < model::kInputSize; ++i) {
      input[i] = static_cast<std::int8_t>(pixels[i] - 128);
    }
    if (interpreter.Invoke() != kTfLiteOk) return 3;

    const std::int8_t* scores = interpreter.output(0)->data.int8;
    int best = 0;
    for (int i = 1; i < model::kClasses; ++i) {
      if (scores[i] > scores[best]) best = i;
    }
    const float score = (scores[best] - model::kOutputZeroPoint) * model::kOutputScale;
    std::printf("%s %d%%\n", model::kLabels[best], static_cast<int>(100 * score + 0.5f));
  }
  return 0;
}
