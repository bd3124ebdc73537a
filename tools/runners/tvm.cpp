// Runs a library that TVM compiled: the Relax virtual machine of libtvm_runtime, through tvm_ffi's C++ headers. Its
// artefacts do not say what they take, so inputs.txt does. Events come from the virtual machine's instrument.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <optional>

#include "runner.h"

namespace {

namespace ffi = tvm::ffi;
using edgeq::Error;
using edgeq::Event;
using edgeq::Output;
using edgeq::TensorType;

constexpr DLDevice CPU{kDLCPU, 0};
constexpr size_t ALIGNMENT = 64;  // bytes; kernels assume it
constexpr int POOLED_ALLOCATOR = 2;

// Memory of a tensor that begins at a multiple of ALIGNMENT.
struct Aligned {
  void AllocData(DLTensor* tensor) {
    if (posix_memalign(&tensor->data, ALIGNMENT, std::max(ffi::GetDataSize(*tensor), ALIGNMENT)) != 0)
      throw Error("out of memory");
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

class Tvm : public edgeq::Engine {
 public:
  std::string runtime() const override { return EDGEQ_RUNTIME; }

  void load(const edgeq::Options& options, const std::vector<TensorType>& inputs) override {
    setenv("TVM_BIND_THREADS", "0", 0);  // else TVM chooses cores itself
    // else it counts them at every parallel loop, and runs the loop on half of them at most
    setenv("TVM_NUM_THREADS", std::to_string(options.threads).c_str(), 1);
    model_ = options.model;
    types_ = inputs;
    said(model_ + " is no library that edgeq compiled with TVM for this device", [&] {
      const bool folder = model_.find('/') != std::string::npos;
      const ffi::Module library = ffi::Module::LoadFromFile(folder ? model_ : "./" + model_);
      machine_ = library->GetFunction("vm_load_executable", true).value()().cast<ffi::Module>();
      get("vm_initialization")(static_cast<int>(kDLCPU), 0, POOLED_ALLOCATOR);
      main_ = get("main");
      ffi::Function::GetGlobalRequired("runtime.config_threadpool")(1, options.threads);
    });
    for (const auto& type : types_) {
      const DLDataType dtype = ffi::StringToDLDataType(type.dtype);
      tensors_.push_back(ffi::Tensor::FromNDAlloc(Aligned(), ffi::Shape(type.shape.begin(), type.shape.end()), dtype, CPU));
      arguments_.push_back(tensors_.back());
    }
  }

  std::vector<TensorType> inputs() const override { return types_; }

  void set_input(size_t index, const std::vector<char>& values) override {
    std::memcpy(tensors_[index].data_ptr(), values.data(), values.size());
  }

  void run() override {
    said(model_ + " failed", [&] {
      main_.value()->CallPacked(arguments_.data(), static_cast<int32_t>(arguments_.size()), &result_);
    });
  }

  std::vector<Output> outputs() override {
    returned_.clear();
    if (auto tensor = result_.as<ffi::Tensor>()) {
      returned_.push_back(*tensor);
    } else {
      for (const auto& each : result_.cast<ffi::Array<ffi::Tensor>>()) returned_.push_back(each);
    }
    std::vector<Output> found;
    for (const auto& tensor : returned_) {
      const std::string dtype = ffi::DLDataTypeToString(tensor.dtype());
      found.push_back({{dtype, {tensor.shape().begin(), tensor.shape().end()}}, tensor.data_ptr()});
    }
    return found;
  }

  void profiled_run(std::vector<Event>& events) override {
    if (!instrumented_) {
      get("set_instrument")(ffi::Function::FromPacked([this](ffi::PackedArgs args, ffi::Any* action) {
        const auto now = edgeq::Clock::now();
        const std::string symbol = args[1].cast<ffi::String>();
        if (args[2].cast<bool>()) {
          begun_ = edgeq::Clock::now();
        } else if (symbol.rfind("vm.", 0) != 0) {  // the machine's own bookkeeping
          records_.emplace_back(symbol, std::chrono::duration<double, std::milli>(now - begun_).count());
        }
        *action = 0;
      }));
      instrumented_ = true;
      run();
    }
    records_.clear();
    run();
    if (events.empty()) {
      for (const auto& [symbol, ms] : records_) events.push_back({symbol, "kernel", -1, {}});
    }
    if (events.size() != records_.size()) throw Error("two profiled runs had different events");
    for (size_t i = 0; i < events.size(); ++i) events[i].ms.push_back(records_[i].second);
  }

 private:
  ffi::Function get(const char* name) { return machine_.value()->GetFunction(name, false).value(); }

  // TVM's errors carry a traceback; the sentence is theirs in one line.
  template <typename Body>
  static void said(const std::string& what, Body body) {
    try {
      body();
    } catch (const ffi::Error& error) {
      const std::string message = error.message();
      throw Error(what + ": " + message.substr(0, message.find('\n')));
    }
  }

  std::string model_;
  std::vector<TensorType> types_;
  std::optional<ffi::Module> machine_;
  std::optional<ffi::Function> main_;
  std::vector<ffi::Tensor> tensors_, returned_;
  std::vector<ffi::AnyView> arguments_;
  ffi::Any result_;
  bool instrumented_ = false;
  edgeq::Clock::time_point begun_{};
  std::vector<std::pair<std::string, double>> records_;
};

}  // namespace

int main(int argc, char** argv) {
  Tvm engine;
  return edgeq::run_main(argc, argv, engine);
}
